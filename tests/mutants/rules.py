"""Which test guards which rule: each row takes one rule out of the product's text, and names the test that then fails.

S1 to S17 are rules of the transaction, its order and its IDs, L1 to L25 of what waits and what fails; the others are
those on which all rest. A rule with several sides has several rows.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One rule taken out.

    Attributes:
        rule: Its name.
        left_out: What the product does not do any more.
        file: Where that stands.
        old: The text that stands there, once.
        new: What stands there instead.
        test: The test that must fail.
        word: What its failure must say, so that it fails for this reason.
    """

    rule: str
    left_out: str
    file: str
    old: str
    new: str
    test: str
    word: str


INTEGRATION = "tests/integration"
UNIT = "tests/unit"

MUTANTS = (
    Mutant(
        "S1",
        "a page of the outbox begins at its lowest row, whatever was read before",
        "consumerkit/relay/rows.py",
        "        del self._acknowledged[: len(acknowledged)]\n",
        """        del self._acknowledged[: len(acknowledged)]
        if isinstance(found, OutboxPage):
            beyond = [one for one in found.pending if one.sequence > getattr(self, "_last", 0)]
            self._last = max((one.sequence for one in beyond), default=0)
            return found._replace(pending=beyond)
""",
        f"{INTEGRATION}/test_relay_order.py"
        "::test_a_lower_sequence_that_is_committed_late_is_not_overtaken[other-nothing waits]",
        "[b'm2', b'm1'] == [b'm1', b'm2']",
    ),
    Mutant(
        "S1",
        "the messages of a key are sent one after another",
        "consumerkit/relay/shipment.py",
        "        if key is None or key not in keys:",
        "        if True:",
        f"{INTEGRATION}/test_relay_memory.py::test_each_keys_messages_go_one_after_another[sqlite]",
        "assert 500 == 50",
    ),
    Mutant(
        "S2",
        "where a first run begins is stored before anything is read",
        "consumerkit/engine/partitions/first_runs.py",
        "            record = await self._partition_store.decide_first_run(*topic, wanted)",
        "            record = wanted",
        f"{INTEGRATION}/test_first_run.py::test_a_death_between_two_take_overs_changes_nothing[sqlite-False-latest]",
        # Old ones run, or new ones never do: which of the two depends on how far the first take-over came.
        "more items:",
    ),
    Mutant(
        "S2",
        "a partition that was added later begins at its start",
        "consumerkit/engine/partitions/first_runs.py",
        "        if found is None or found.offset is not None or found.source is Source.START:\n"
        "            return found\n",
        "        found = found or FirstStart(Source.END, None, _now())\n        if found.offset is not None:\n"
        "            return found\n",
        f"{INTEGRATION}/test_first_run.py::test_a_partition_that_is_added_is_read_from_its_start[sqlite-True-latest]",
        "Right contains 10 more items",
    ),
    Mutant(
        "S3",
        "a second transaction of the handler's session is refused",
        "consumerkit/engine/transaction/session_guard.py",
        """        else:
            self.unfit = (
                f"the session began a second transaction""",
        """        else:
            return
            self.unfit = (
                f"the session began a second transaction""",
        f"{UNIT}/engine/transaction/test_guard.py::test_a_second_transaction_of_the_session_is_refused_and_remembered",
        "DID NOT RAISE SessionUnfit",
    ),
    Mutant(
        "S4",
        "a schema_translate_map that reaches our tables is refused",
        "consumerkit/storage/location.py",
        "        if name in given and given[name] != name:",
        "        if False:",
        f"{INTEGRATION}/test_table_names.py::test_a_map_that_reaches_our_tables_is_refused_at_the_start[default]",
        "DID NOT RAISE",
    ),
    Mutant(
        "S4",
        "locks are numbered by the schema in which the tables were found",
        "consumerkit/storage/fence.py",
        "{tables.identity(tables.partition_progress)}",
        "{(tables.configured or tables).schema}",
        f"{INTEGRATION}/test_table_names.py::test_one_set_of_tables_has_one_fence_however_it_is_configured",
        "assert 2 == 1",
    ),
    Mutant(
        "S5",
        "what a handler has set is set back before our statements",
        "consumerkit/storage/dialects/settings.py",
        "    if found == settings.ours:\n",
        "    if True:\n",
        f"{INTEGRATION}/test_handler_settings.py"
        "::test_no_setting_of_a_handler_reaches_us_or_what_comes_later[psycopg-role-SET LOCAL]",
        "permission denied for table consumerkit_",
    ),
    Mutant(
        "S6",
        "a set, whose bytes depend on the process, is no message ID",
        "consumerkit/handlers/value_bytes.py",
        "        SET: isinstance(value, Set),\n",
        "",
        f"{UNIT}/handlers/test_value_bytes.py::test_a_value_whose_bytes_would_not_be_the_value_is_refused_where_only_the_value_tells",
        "DID NOT RAISE",
    ),
    Mutant(
        "S6",
        "the parts of a set are sorted in a fingerprint",
        "consumerkit/handlers/value_bytes.py",
        'b"".join(sorted(map(_canonical, value)))',
        'b"".join(map(_canonical, value))',
        f"{UNIT}/handlers/test_value_bytes.py::test_a_fingerprint_is_the_same_in_every_process",
        "= len({'",
    ),
    Mutant(
        "S6",
        "fingerprints of two versions are not compared",
        "consumerkit/engine/transaction/transaction.py",
        "        if item.fingerprint_version == known[1]:\n",
        "        if True:\n",
        f"{INTEGRATION}/test_fingerprint_versions.py",
        "assert 0 == 1",
    ),
    Mutant(
        "S7",
        "a number that is too large for seconds is one of a smaller unit",
        "consumerkit/engine/transaction/prepare.py",
        "_UNITS: Final = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))",
        "_UNITS: Final = ((1e11, 1e3),)",
        f"{INTEGRATION}/test_event_time.py::test_what_is_read_as_a_time",
        "== 1700000000.123456",
    ),
    Mutant(
        "S8",
        "ages are told by the database's clock",
        "consumerkit/engine/partitions/database_clock.py",
        "        return None if self._ahead is None else time.monotonic() + self._ahead\n",
        "        return None if self._ahead is None else time.time()\n",
        f"{UNIT}/engine/partitions/test_database_clock.py::test_a_workers_clock_that_is_days_off_changes_nothing",
        "it is told by the worker's clock",
    ),
    Mutant(
        "S8",
        "a flood of stale messages asks the brake",
        "consumerkit/engine/transaction/transaction.py",
        "            raise StaleFound(*found)\n        for item in unknown:\n            if not item.aged:\n",
        "            pass\n        for item in unknown:\n            if True:\n",
        f"{INTEGRATION}/test_event_time.py::test_a_flood_of_stale_messages_asks_the_brake",
        "the brake: not within",
    ),
    Mutant(
        "S9",
        "what is raised after COMMIT was answered undoes nothing",
        "consumerkit/engine/transaction/commit_evidence.py",
        "                self.tell(handler, error)\n            return\n",
        "                raise error\n            return\n",
        f"{UNIT}/engine/transaction/test_commit_evidence.py::test_what_is_raised_after_the_answer_is_told_and_undoes_nothing",
        "ValueError: the user's hook",
    ),
    Mutant(
        "S10",
        "only a claim that this transaction has written is taken back",
        "consumerkit/storage/dialects/postgresql.py",
        '        return cast(literal_column("xmin"), Text) == str(int(proof) % _TRANSACTION_IDS)\n',
        '        return cast(literal_column("xmin"), Text) != "0"\n',
        f"{INTEGRATION}/test_claims_of_others.py::test_the_claim_of_another_transaction_is_not_taken_back",
        "Outcome.DEAD: 3",
    ),
    Mutant(
        "S11",
        "a copy whose key is blocked waits for its turn to be told of",
        "consumerkit/engine/transaction/transaction.py",
        "        if self._declared.on_duplicate is None:\n            item.disposition = Disposition.DUPLICATE\n",
        "        if self._declared.on_duplicate is None or item.wanted is not Disposition.RUN:\n"
        "            item.disposition = Disposition.DUPLICATE\n",
        f"{INTEGRATION}/test_on_duplicate.py::test_a_copy_of_a_processed_message_whose_key_is_blocked_waits_in_its_turn",
        "what can be parked: not within",
    ),
    Mutant(
        "S12",
        "each attempt has a decimal context of its own",
        "consumerkit/engine/transaction/fresh_context.py",
        "        made.run(decimal.setcontext, self._decimal.copy())\n",
        "",
        f"{INTEGRATION}/test_own_context.py::test_each_attempt_begins_in_the_context_that_the_worker_had",
        "'1.235E+6'",
    ),
    Mutant(
        "S12",
        "each attempt has context variables of its own",
        "consumerkit/engine/transaction/fresh_context.py",
        "        made = self._base.copy()\n",
        "        made = self._base\n",
        f"{INTEGRATION}/test_own_context.py::test_each_attempt_begins_in_the_context_that_the_worker_had",
        "Extra items in the left set:",
    ),
    Mutant(
        "S13",
        "a session that is over refuses",
        "consumerkit/engine/transaction/session_guard.py",
        "        if self._over is not None:\n",
        "        if False:\n",
        f"{UNIT}/engine/transaction/test_guard.py::test_a_session_that_is_over_refuses",
        "DID NOT RAISE SessionOver",
    ),
    Mutant(
        "S14",
        "a mark rests on no lane that has begun anew",
        "consumerkit/engine/partitions/partition_store.py",
        "                if one.name in found and one.fencing_token != found[one.name].owner:\n",
        "                if False:\n",
        f"{UNIT}/engine/partitions/test_partition_store.py::test_a_mark_that_a_thread_writes_while_lost_commits_are_noticed_is_not_written",
        "assert 1 == 0",
    ),
    Mutant(
        "S14",
        "a command looks at the mark again once it holds the fence",
        "consumerkit/operations/positions.py",
        "        one = _as_it_stands(asked, standing, back=back)\n",
        "        one = asked\n",
        f"{INTEGRATION}/test_progress.py"
        "::test_a_mark_that_moves_while_a_command_waits_for_the_fence_is_looked_at_again[sqlite-skip-12-15-15]",
        "== (15, 15, 15)",
    ),
    Mutant(
        "S15",
        "our errors survive pickling",
        "consumerkit/errors.py",
        "        return _again, (type(self), self.args), self.__dict__ or None\n",
        "        return type(self), self.args, self.__dict__ or None\n",
        f"{UNIT}/test_errors.py::test_what_is_raised_in_a_process_pool_is_what_comes_out",
        "BrokenProcessPool",
    ),
    Mutant(
        "S16",
        "a letter is delivered again only where digest and fingerprint agree",
        "consumerkit/storage/origins.py",
        "        if self.is_known and other.is_known:\n",
        "        return True\n        if self.is_known and other.is_known:\n",
        f"{INTEGRATION}/test_strange_places.py"
        "::test_a_row_that_stands_at_the_place_of_a_message_that_dies_is_told_and_swallows_nothing",
        "no record in the dead-letter topic",
    ),
    Mutant(
        "S16",
        "a place that a stranger names is ours only below the log's end and the mark",
        "consumerkit/redrive/importing/route.py",
        "    if letter.topic_id == home.topic_id and origin.offset < below:\n",
        "    if letter.topic_id == home.topic_id:\n",
        # The rule above would still save the message: two nets, and so a test of this one alone.
        f"{UNIT}/redrive/test_route.py"
        "::test_what_is_not_settled_or_tells_no_topic_id_has_an_origin_of_its_own_in_its_partition",
        "origin:",
    ),
    Mutant(
        "S17",
        "a message is parked beside a stranger's at its place",
        "consumerkit/storage/parking/places.py",
        "    return not stands_for(lot, connection, row).agrees(_own(lot, connection, one))\n",
        "    return False\n",
        f"{INTEGRATION}/test_strange_places.py::test_a_message_is_parked_beside_a_redriven_letter_that_names_its_place",
        "nothing is parked",
    ),
    Mutant(
        "claim",
        "what was claimed before is not run again",
        "consumerkit/storage/dialects/postgresql.py",
        "        return {won[at : at + DIGEST_BYTES] for at in range(0, len(won), DIGEST_BYTES)}\n",
        "        return set(digests)\n",
        f"{INTEGRATION}/test_engine_memory.py::test_lost_partitions_are_delivered_again_and_nothing_is_doubled",
        "assert Counter(",
    ),
    Mutant(
        "claim",
        "a duplicate does not change the tables again, as `assert_idempotent` sees it",
        "consumerkit/storage/dialects/sqlite.py",
        "        taken = self._taken(connection, consumer, [claim.digest for claim in claims], name)\n",
        "        taken = self._taken(connection, consumer, [claim.digest for claim in claims], name)\n"
        "        connection.execute(self._ledger.delete().where(self._ledger.c.digest.in_(taken)))\n"
        "        taken.clear()\n",
        f"{INTEGRATION}/test_assert_idempotent.py::test_what_changes_its_tables_through_the_session_passes[credit]",
        "is not idempotent",
    ),
    Mutant(
        "testing",
        "a killed worker goes no further",
        "consumerkit/testing/boundaries.py",
        "                if name not in _SPARED:\n                    raise FailpointError(name)\n",
        "",
        f"{UNIT}/testing/test_boundaries.py::test_a_worker_is_killed_at_its_visit_and_passes_no_place_afterwards",
        "DID NOT RAISE",
    ),
    Mutant(
        "fence",
        "a transaction fails at its end where another owns its partition",
        "consumerkit/engine/transaction/transaction.py",
        "        if owned != len(batch.owners):\n",
        "        if False:\n",
        f"{INTEGRATION}/test_fence.py::test_a_foreign_token_is_found_before_anything_is_durable",
        "= seen(PartitionInDoubt)",
    ),
    Mutant(
        "end",
        "a transaction that a handler has ended is found out before anything is taken for committed",
        "consumerkit/engine/transaction/transaction.py",
        "        if not batch.handled:\n            return\n",
        "        return\n",
        f"{INTEGRATION}/test_awkward_handlers.py::test_a_transaction_that_a_handler_ended_loses_no_message",
        "Extra items in the right set:",
    ),
    Mutant(
        "offsets",
        "no offset above an unfinished message is committed",
        "consumerkit/engine/partitions/offsets.py",
        "            return pending[0] if pending else following\n",
        "            return following\n",
        f"{UNIT}/engine/partitions/test_offsets.py::test_one_slow_message_holds_the_position",
        "assert (1000, 1) == (0, 1)",
    ),
    Mutant(
        "L25",
        "what is set aside of a slowed partition goes before what comes later of it",
        "consumerkit/engine/lanes/lane.py",
        "(partition.name in self._aside or not self._gate.partitions.admits(message))",
        "not self._gate.partitions.admits(message)",
        f"{INTEGRATION}/test_brake.py::test_what_is_set_aside_of_a_slowed_partition_goes_before_what_comes_later",
        "['second', 'first'] == ['first', 'second']",
    ),
    Mutant(
        "L26",
        "what is given again of a slowed partition goes before what was set aside while it ran",
        "consumerkit/engine/lanes/lane.py",
        "            if name in self._aside:\n                self._set_aside(name, message)\n            else:\n"
        "                self.waiting.appendleft(message)\n",
        "            self.waiting.appendleft(message)\n",
        f"{INTEGRATION}/test_brake.py"
        "::test_what_is_given_again_of_a_slowed_partition_goes_before_what_was_set_aside_while_it_ran",
        "['second', 'beside', 'first'] == ['beside', 'first', 'second']",
    ),
    Mutant(
        "offsets",
        "what was dropped twice is read from the first that is missing",
        "consumerkit/engine/partitions/offsets.py",
        "            if min(dropped) < self._next:\n",
        "            if True:\n",
        f"{UNIT}/engine/partitions/test_dropped_offsets.py::test_dropping_twice_reads_from_the_first_that_is_missing[again0]",
        "(8, 5) == (4, 4)",
    ),
    Mutant(
        "offsets",
        "what the log has lost is waited for while it is in hand",
        "consumerkit/engine/partitions/offsets.py",
        "        while self._ahead and self._ahead[0] < offset:\n",
        "        while False:\n",
        f"{UNIT}/engine/partitions/test_dropped_offsets.py::test_a_message_that_the_log_has_no_more_is_waited_for",
        "9 == 6",
    ),
    Mutant(
        "steps",
        "a step that is done is not called again",
        "consumerkit/storage/steps.py",
        "found.state in (StepState.DONE, StepState.UNDOING",
        "found.state in (StepState.UNDOING",
        f"{INTEGRATION}/test_steps.py::test_a_step_within_handle[postgresql]",
        "['v0', 'v1', 'v1', 'v1', 'v2'] == ['v0', 'v1', 'v2']",
    ),
    Mutant(
        "steps",
        "an old result is not written over a newer one",
        "consumerkit/storage/dialects/many_steps.py",
        "AND kept.owner = CAST(:owner AS bytea)",
        "AND (kept.owner = CAST(:owner AS bytea) OR true)",
        f"{INTEGRATION}/test_steps.py::test_an_old_result_is_not_written_over_a_newer_one[postgresql]",
        "'charge of v0' == 'the newer one'",
    ),
    Mutant(
        "steps",
        "what a call came to is written",
        "consumerkit/storage/dialects/many_steps.py",
        "SET state = mine.state, result = NULLIF(mine.result, ''), ended_at = now()",
        "SET ended_at = now()",
        f"{INTEGRATION}/test_steps.py::test_a_rollback_does_not_call_again[postgresql-Charging]",
        "StepAwaited(",
    ),
    Mutant(
        "steps",
        "a step is begun by the partition's owner only",
        "consumerkit/storage/steps.py",
        "        if owned != len(owners):\n",
        "        if False:\n",
        f"{INTEGRATION}/test_steps.py::test_a_fenced_worker_writes_nothing[sqlite-before the start]",
        "[] == ['Fenced', '']",
    ),
    Mutant(
        "steps",
        "a step that is alive has its deadline extended",
        "consumerkit/storage/steps.py",
        ".values(deadline_at=self.dialect.in_seconds(deadline))\n",
        ".values(calls=table.c.calls)\n",
        f"{INTEGRATION}/test_steps.py::test_the_deadline_of_a_step_that_is_alive_counts_from_then[sqlite-Alive-ours]",
        "assert False",
    ),
    Mutant(
        "undo",
        "the steps of a dead message are undone in reverse order",
        "consumerkit/storage/undoing.py",
        "return sorted(rows, key=_order, reverse=True)",
        "return sorted(rows, key=_order)",
        f"{INTEGRATION}/test_undo.py::test_a_dead_messages_steps_are_undone_in_reverse_order[sqlite-False]",
        "At index 2 diff: 'released-v1' != 'refunded-v1'",
    ),
    Mutant(
        "undo",
        "a worker keeps its lease while it undoes a step",
        "consumerkit/engine/undoing.py",
        "                    await self._run(hold)\n",
        "                    pass\n",
        f"{INTEGRATION}/test_slow_steps.py::test_an_undo_that_takes_longer_than_its_lease_is_called_once"
        "[postgresql-SlowRefunding]",
        "'began-refund-v0'",
    ),
    Mutant(
        "undo",
        "a worker that lost its lease settles no undo",
        "consumerkit/storage/undoing.py",
        "table.c.step == one.step, table.c.owner == owner)",
        "table.c.step == one.step)",
        f"{INTEGRATION}/test_slow_steps.py::test_a_worker_that_lost_its_lease_does_not_settle_an_undo[postgresql]",
        "'not undone'",
    ),
    Mutant(
        "steps",
        "effects of prepare run no step after it",
        "consumerkit/steps/lane_steps.py",
        "            effects.close()\n",
        "            pass\n",
        f"{INTEGRATION}/test_steps.py::test_effects_of_prepare_are_refused_after_it[postgresql]",
        "0 == 1",
    ),
    Mutant(
        "undo",
        "what was undone is called with another key",
        "consumerkit/storage/steps.py",
        "generation=found.generation + 1)",
        "generation=found.generation)",
        f"{INTEGRATION}/test_undo.py::test_a_redrive_waits_for_the_undo_and_calls_in_a_new_generation[sqlite]",
        "assert 1 == 2",
    ),
    Mutant(
        "budget",
        "what cannot run gives up its room",
        "consumerkit/engine/holding.py",
        "        if partition.weight <= share or partition.is_leaving or partition.adrift:\n",
        "        if True:\n",
        f"{INTEGRATION}/test_budget.py::test_what_cannot_run_gives_up_its_room_and_is_read_again_once[Ordering.KEY]",
        "room is made",
    ),
    Mutant(
        "requests",
        "a key is claimed before the endpoint runs",
        "consumerkit/http/transaction.py",
        "        if key is None:\n            return None\n        wait",
        "        if True:\n            return None\n        wait",
        f"{INTEGRATION}/test_http_edge.py::test_a_repeated_request_gets_the_first_answer_again[sqlite]",
        "(500, None)",
    ),
    Mutant(
        "requests",
        "a kept answer is given again",
        "consumerkit/http/exchange.py",
        "            await self._transaction.roll_back()\n            return self._again(taken)\n",
        "            return None\n",
        f"{INTEGRATION}/test_http_edge.py::test_a_repeated_request_gets_the_first_answer_again[sqlite]",
        "(500, None)",
    ),
    Mutant(
        "requests",
        "another request under a key is refused",
        "consumerkit/http/exchange.py",
        "        if taken.kept.fingerprint != self._key.fingerprint:\n",
        "        if False:\n",
        f"{INTEGRATION}/test_http_edge.py::test_another_request_under_a_key_is_refused[sqlite]",
        "KeyError: 'title'",
    ),
    Mutant(
        "requests",
        "an answer is sent after the commit",
        "consumerkit/http/fastapi.py",
        "            response: Response = await edge.exchange(request).routed(lambda: handle(request))\n"
        "            return response\n",
        """            exchange = edge.exchange(request)
            exchange.is_routed = True
            response = await handle(request)

            async def late(scope: Any, receive: Any, send: Any) -> None:
                await type(response).__call__(response, scope, receive, send)
                await exchange._completed(response)
                await exchange._leave()

            return late
""",
        f"{INTEGRATION}/test_http_edge.py::test_fastapi_commits_before_it_sends_and_runs_its_tasks_after[sqlite]",
        "('http.response.start', 0)",
    ),
    Mutant(
        "requests",
        "the changes of an answer of 4xx are rolled back",
        "consumerkit/http/exchange.py",
        "        if response.status_code < 400:\n",
        "        if response.status_code < 500:\n",
        f"{INTEGRATION}/test_http_edge.py::test_an_answer_of_4xx_is_kept_by_choice_and_its_changes_never[sqlite-returned]",
        "(401, 'true')",
    ),
    Mutant(
        "requests",
        "a stream of events outlasts trouble of the database",
        "consumerkit/http/status_page.py",
        "        if streams and (status is None or not _was_told(request, status)):\n",
        "        if streams and status is not None and not _was_told(request, status):\n",
        f"{INTEGRATION}/test_http_status.py::test_events_outlast_trouble_of_the_database",
        "out of reach",
    ),
    Mutant(
        "requests",
        "a key is of the route and not of its parameters",
        "consumerkit/http/route.py",
        '    if "app_root_path" in scope or "route" not in scope:',
        "    if False:",
        f"{INTEGRATION}/test_http_edge.py::test_a_key_is_of_the_route_and_not_of_its_parameters",
        "(422, None)",
    ),
    Mutant(
        "requests",
        "the answer is kept in the transaction of the changes",
        "consumerkit/http/exchange.py",
        "        await self._transaction.commit(self._key, answer)\n        reach",
        "        await self._transaction.commit(self._key, None)\n        reach",
        "tests/crash/test_request_kills.py"
        "::test_a_request_whose_service_is_killed_takes_effect_once[request_committed]",
        "[None, None] == ['true', 'true']",
    ),
    Mutant(
        "jobs",
        "a key that was used is told from a new one",
        "consumerkit/storage/keys.py",
        "                if key.digest in kept:\n                    return kept[key.digest]\n",
        "                if key.digest in kept:\n                    return None\n",
        f"{INTEGRATION}/test_jobs.py::test_a_block_takes_effect_once_for_each_key[pysqlite]",
        "[True, True, True, True] == [True, False, True, False]",
    ),
    Mutant(
        "jobs",
        "an error that a block swallowed fails its end",
        "consumerkit/jobs/own_transaction.py",
        "    dialect.probe(session.connection())\n",
        "",
        f"{INTEGRATION}/test_jobs.py::test_an_error_that_was_swallowed_is_not_committed_as_done[psycopg]",
        "DID NOT RAISE",
    ),
    Mutant(
        "jobs",
        "a batch is committed by the loop alone",
        "consumerkit/jobs/batches.py",
        '        event.listen(session, "before_commit", self._refuse)\n',
        '        event.listen(session, "before_commit", lambda _: None)\n        self._refuse = lambda _: None\n'
        '        event.listen(session, "before_commit", self._refuse)\n',
        f"{INTEGRATION}/test_jobs.py::test_a_batch_is_committed_by_the_loop_alone[pysqlite]",
        "the loop commits each batch",
    ),
    Mutant(
        "monitoring",
        "a handler without partitions is not ready",
        "consumerkit/worker/readiness.py",
        "            self._without_partitions(replace(event, handler=handler))\n",
        "            pass\n",
        f"{UNIT}/worker/test_readiness.py::test_a_handler_is_ready_with_partitions_or_where_others_have_them_all",
        "credit: its group has assigned it no partitions yet",
    ),
    Mutant(
        "monitoring",
        "what is due counts as work that is left",
        "consumerkit/monitoring/backlog.py",
        "        return self.lag + self.parked_due + self.keys_held + self.undos_due\n",
        "        return self.lag + self.keys_held + self.undos_due\n",
        f"{UNIT}/monitoring/test_metrics.py::test_work_left_is_lag_due_held_and_undos_and_its_age_the_oldest",
        "(12.0, 40.0) == (14, 40.0)",
    ),
    Mutant(
        "monitoring",
        "what a handler publishes goes on in its message's trace",
        "consumerkit/engine/transaction/batch.py",
        "        trace = self.spans.headers() if made else ()\n",
        "        trace = ()\n",
        f"{INTEGRATION}/test_tracing.py::test_a_message_goes_on_in_the_trace_that_its_header_names[sqlite]",
        "not enough values to unpack",
    ),
    Mutant(
        "monitoring",
        "an attempt is linked to the one before",
        "consumerkit/observability/traces.py",
        "                self._traces.remember(message, span.get_span_context())\n",
        "                pass\n",
        f"{INTEGRATION}/test_tracing.py::test_a_retry_goes_on_in_the_trace_and_is_linked_to_the_attempt_before[sqlite]",
        "in [",
    ),
    Mutant(
        "recovery",
        "a process that works leaves the groups for one that has died",
        "consumerkit/supervisor/supervisor.py",
        "            best.channel.tell_dead(members)\n",
        "",
        f"{INTEGRATION}/test_supervisor.py::test_the_groups_of_dead_processes_are_told_to_the_others[1]",
        "for 2 times 'dead: ",
    ),
    Mutant(
        "recovery",
        "two names of a database do not share a group",
        "consumerkit/storage/consumers.py",
        "    if others and not adopt:\n",
        "    if False:\n",
        f"{INTEGRATION}/test_worker_start.py::test_two_names_do_not_share_a_group",
        "DID NOT RAISE",
    ),
    Mutant(
        "monitoring",
        "an error of the target's own code names the user's line",
        "consumerkit/cli/target.py",
        "    inner = next((frame for frame in reversed(frames) if frame.is_theirs), None)\n",
        "    inner = next(reversed(frames), None)\n",
        f"{UNIT}/cli/test_target.py::test_an_error_out_of_a_library_names_the_users_line[in_another_library]",
        "Regex pattern did not match",
    ),
    Mutant(
        "reload",
        "a process that cannot start waits for the next change of its code",
        "consumerkit/supervisor/supervisor.py",
        "            if self._changes is not None and code == NOT_STARTED:\n",
        "            if False:\n",
        f"{INTEGRATION}/test_supervisor.py"
        "::test_a_change_of_the_code_replaces_the_processes_and_one_that_cannot_start_waits_for_the_next",
        "for the broken code to be told",
    ),
    Mutant(
        "reload",
        "a change while processes are replaced begins that again",
        "consumerkit/supervisor/replacement.py",
        "        self.cancel()\n        what",
        "        if self.is_under_way:\n            return\n        what",
        f"{INTEGRATION}/test_supervisor.py::test_a_change_while_processes_are_replaced_begins_that_again",
        "for all to be replaced",
    ),
    Mutant(
        "monitoring",
        "what the relay sends has a span below whoever wrote it",
        "consumerkit/observability/send_spans.py",
        "        context=extracted(message.headers),\n",
        "",
        f"{INTEGRATION}/test_tracing.py::test_what_the_relay_sends_has_a_span_below_that_of_the_handler[sqlite]",
        "4bf92f3577b34da6a3ce929d0e0e4736",
    ),
    Mutant(
        "outside waits",
        "a wait outside the session is noticed",
        "consumerkit/engine/transaction/unit_of_work.py",
        "        watched = watch(batch.sharing, batch.guard, self._invoke)\n",
        "        watched = None\n",
        f"{INTEGRATION}/test_outside_waits.py"
        "::test_a_handler_with_defaults_sends_each_mail_once_though_others_fail[psycopg]",
        "Counter(",
    ),
    Mutant(
        "outside waits",
        "the batch ends after the message that waited",
        "consumerkit/engine/transaction/batch.py",
        "            if self.handled and (now > limit or self.sharing.alone):\n",
        "            if self.handled and now > limit:\n",
        f"{INTEGRATION}/test_outside_waits.py::test_a_wait_that_comes_late_ends_the_batch_there",
        "[6] == [3, 1, 1, 1]",
    ),
    Mutant(
        "outside waits",
        "from then on each message has a transaction of its own",
        "consumerkit/engine/lanes/executor.py",
        "        items = [Item(one) for one in decided]\n",
        "        items = [Item(one) for one in decided]\n        self.sharing.alone = False\n",
        f"{INTEGRATION}/test_outside_waits.py::test_a_wait_that_comes_late_ends_the_batch_there",
        "== [3, 1, 1, 1]",
    ),
    Mutant(
        "outside waits",
        "a lane takes no more messages than may share a transaction",
        "consumerkit/engine/lanes/grouping.py",
        "        return self._executor.gate.braking or self._executor.sharing.alone\n",
        "        return self._executor.gate.braking\n",
        f"{INTEGRATION}/test_outside_waits.py::test_a_wait_that_comes_late_ends_the_batch_there",
        "each of the rest was taken by itself",
    ),
    Mutant(
        "outside waits",
        "a step within handle is no wait outside",
        "consumerkit/engine/transaction/outside_waits.py",
        "        return self.steps is None or not self.steps.at_work\n",
        "        return True\n",
        f"{INTEGRATION}/test_outside_waits.py::test_a_step_within_handle_is_no_wait_outside",
        "== [10]",
    ),
    Mutant(
        "outside waits",
        "the claim of a parked message that is cut off is taken back",
        "consumerkit/engine/transaction/transaction.py",
        "                    _check_first(item)\n                    item.claimed = True\n",
        "                    _check_first(item)\n",
        f"{INTEGRATION}/test_outside_waits.py::test_a_parked_message_that_is_cut_off_is_not_taken_for_processed",
        "lines of",
    ),
    Mutant(
        "kafka",
        "a group that another database's handler uses is refused before a first run is decided",
        "consumerkit/engine/partitions/first_runs.py",
        "            for one in survey.partitions.values():\n                if (refusal",
        "            for one in ():\n                if (refusal",
        f"{INTEGRATION}/test_shared_group.py::test_the_second_of_two_databases_takes_nothing[write]",
        "a first run was decided by the other's offsets",
    ),
    Mutant(
        "kafka",
        "a partition that another database's handler committed is not taken over",
        "consumerkit/engine/partitions/start_position.py",
        "    if (refusal := origin.refusal(info.note)) is not None:\n",
        "    if (refusal := origin.refusal(info.note)) is not None and standing.mark is None:\n",
        f"{INTEGRATION}/test_shared_group.py"
        "::test_a_group_is_taken_over_by_adopt_and_is_then_refused_to_the_one_before",
        "the refusal: not within",
    ),
    Mutant(
        "kafka",
        "a token is renewed before it expires",
        "consumerkit/transports/token_keeper.py",
        "max(_SHORTEST_LIFE, token.seconds_left * RENEWED_AFTER)",
        "max(_SHORTEST_LIFE, token.seconds_left + 60.0)",
        f"{UNIT}/transports/test_oauth.py::test_a_token_is_renewed_before_it_expires",
        "the keeper",
    ),
    Mutant(
        "relay",
        "a relay without the turn learns that another process sent what it held back",
        "consumerkit/relay/relay.py",
        "                await self._review(time.monotonic(), sends=False)\n",
        "",
        f"{INTEGRATION}/test_relay_left_behind.py::test_who_failed_learns_that_another_process_sent[sqlite-False]",
        "OutboxResumed",
    ),
    Mutant(
        "relay",
        "a relay with the turn learns that another process sent what it held back",
        "consumerkit/relay/relay.py",
        "        await self._review(time.monotonic(), sends=True)\n",
        "",
        f"{INTEGRATION}/test_relay_left_behind.py::test_who_failed_learns_that_another_process_sent[sqlite-True]",
        "OutboxResumed",
    ),
    Mutant(
        "relay",
        "a process that waits for a silent one learns that a third one has the turn",
        "consumerkit/relay/turn.py",
        "self._told in (None, holder.name) and _is_silent(holder, waited)",
        "(self._told is not None or _is_silent(holder, waited))",
        f"{INTEGRATION}/test_relay_left_behind.py"
        "::test_a_silent_process_that_lost_the_turn_to_a_third_one_is_waited_for_no_longer",
        "OutboxTurnCame",
    ),
    Mutant(
        "readiness",
        "a suspected message is of no account once it is with another process",
        "consumerkit/worker/readiness.py",
        '("doubt", "suspected", "stopped", ',
        '("doubt", "stopped", ',
        f"{UNIT}/worker/test_readiness.py"
        "::test_a_suspected_message_is_told_of_until_a_message_has_run_or_it_is_elsewhere[ends2]",
        "ready",
    ),
    Mutant(
        "readiness",
        "a brake is of no account where other processes have all partitions",
        "consumerkit/worker/readiness.py",
        "and self._owned.get(str(handler)) == set()",
        "and self._owned.get(str(handler)) is self",
        f"{UNIT}/worker/test_readiness.py"
        "::test_what_only_a_message_can_end_does_not_count_where_other_processes_have_all_partitions[begins0]",
        "ready",
    ),
    Mutant(
        "L9",
        "what an owner only repeats is no progress beyond owners that died",
        "consumerkit/engine/transaction/new_outcomes.py",
        "if item.parked is None and (item.claimed or item.revived or id(item.dead) in written)",
        "if item.parked is None",
        f"{INTEGRATION}/test_death_count.py::test_only_a_new_outcome_ends_the_count[only-known]",
        "assert 0 == 2",
    ),
)
