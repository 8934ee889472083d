"""The parking lot: what waits for its next attempt, what waits behind it, and what does not."""

import asyncio
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from consumerkit import Brake, Context, Events, Ordering, Retry, fixed, header
from consumerkit.engine.lanes import lane, parked_poller
from consumerkit.errors import Defer
from consumerkit.events import AttemptFailed, GroupCommitted, PartitionInDoubt, PartitionTaken
from consumerkit.message import TopicPartition
from consumerkit.redrive import Selection, redrive
from consumerkit.storage import fence
from consumerkit.storage.parking import occupancy
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.crash.model import Payment
from tests.integration.yard import TOPIC, BatchTrial, PlainTrial, Trial, Yard
from tests.services import PostgresServer

LONG = Retry(attempts=5, wait=fixed(60))


@pytest.fixture
async def yard(postgres: PostgresServer, database: str) -> Yard:
    made = Yard(postgres, database)
    await made.create_tables()
    return made


# What is parked, and when.


async def test_a_failure_is_recorded_with_the_whole_message(yard: Yard) -> None:
    yard.send(1, "forever", headers=(("trace", b"\xff\x00"), ("trace", None)))
    async with yard.run(Trial(retry=LONG)) as run:
        await run.until(yard.holds(1), "the parking")
        await run.until(lambda: yard.committed() == 1, "the offset past it")
    (row,) = yard.parked()
    sent = yard.broker.records(TOPIC)[0]
    assert (row["topic"], row["topic_id"], row["partition"], row["offset"]) == (TOPIC, sent.topic_id, 0, 0)
    assert (row["key"], row["value"], row["timestamp"]) == (sent.key, sent.value, sent.timestamp)
    assert (row["message_id"], row["attempts"]) == ("p-1", 1)
    assert (row["error_type"], row["error"]) == ("tests.integration.yard.ProviderDown", "for ever")
    assert "in decide" in row["stack"]
    assert 50 < row["wait"] <= 60
    assert row["first_failed_at"] is not None
    assert yard.outcome(1) == 2
    assert yard.effects() == []


async def test_attempts_in_place_come_first(yard: Yard) -> None:
    handler = Trial(retry=Retry(attempts=6, wait=fixed(0.2), in_place=3))
    yard.send(1, "fail:4")
    async with yard.run(handler) as run:
        await run.until(yard.holds(1), "the parking")
        assert [row["attempts"] for row in yard.parked()] == [3]
        await run.until(yard.has(1), "the effect")
    assert handler.attempts(1) == [1, 2, 3, 4, 5]
    yard.check()


@pytest.mark.parametrize("kind", [Trial, PlainTrial, BatchTrial])
async def test_later_messages_of_a_parked_key_wait_in_order_and_other_keys_flow(
    yard: Yard, kind: type[Trial | PlainTrial | BatchTrial]
) -> None:
    handler = kind(ordering=Ordering.KEY, retry=Retry(attempts=5, wait=fixed(0.7)))
    yard.send(1, "fail:2", key=b"a")
    for number in range(2, 12):
        yard.send(number, "fail:1" if number == 5 else "ok", key=b"a" if number % 2 else b"b")
    async with yard.run(handler) as run:
        await run.until(yard.has(2, 4, 6, 8, 10), "the other key's effects")
        assert yard.effects() == ["2", "4", "6", "8", "10"]
        yard.send(12, key=b"b")
        yard.send(13, key=b"a")
        await run.until(yard.has(12), "a later one of the other key")
        await run.until(lambda: len(yard.effects()) == 13, "everything")
    assert [n for n in yard.effects() if int(n) % 2] == ["1", "3", "5", "7", "9", "11", "13"]
    assert handler.attempts(3)[-1] == 1
    assert not run.seen(PartitionInDoubt)
    yard.check()


async def test_messages_without_a_key_have_no_order(yard: Yard) -> None:
    yard.send(1, "forever", key=None)
    yard.send(2, key=None)
    async with yard.run(Trial(retry=LONG)) as run:
        await run.until(yard.has(2), "the second")
    assert len(yard.parked()) == 1


async def test_with_order_per_partition_the_partition_waits_and_others_flow(yard: Yard) -> None:
    handler = Trial(ordering=Ordering.PARTITION, retry=Retry(attempts=5, wait=fixed(0.8)))
    for number in range(20):
        yard.send(number, "fail:2" if number == 6 else "ok", key=b"%d" % number, partition=number % 2)
    async with yard.run(handler) as run:
        await run.until(yard.has(*range(1, 20, 2)), "the other partition")
        assert [n for n in yard.effects() if int(n) % 2 == 0] == ["0", "2", "4"]
        await run.until(lambda: len(yard.effects()) == 20, "everything")
    assert [n for n in yard.effects() if int(n) % 2 == 0] == [str(n) for n in range(0, 20, 2)]
    assert not run.seen(PartitionInDoubt)
    yard.check()


async def test_with_order_per_partition_what_waits_does_not_take_the_memory_of_other_partitions(yard: Yard) -> None:
    yard.send("bad", "forever", partition=0)
    async with yard.run(Trial(ordering=Ordering.PARTITION, retry=LONG), memory_budget=100_000) as run:
        await run.until(yard.holds(1), "the parking")
        for number in range(1000):
            yard.send(number, partition=0)
        await asyncio.sleep(1.5)
        yard.send("other", partition=1)
        await run.until(yard.has("other"), "the other partition's message")


async def test_without_order_only_the_one_waits(yard: Yard) -> None:
    yard.send(1, "forever")
    for number in range(2, 30):
        yard.send(number)
    async with yard.run(Trial(ordering=Ordering.NONE, retry=LONG)) as run:
        await run.until(yard.has(*range(2, 30)), "all others")
    assert [row["message_id"] for row in yard.parked()] == ["p-1"]
    yard.check()


# What outlives a process and an assignment.


async def test_a_restart_keeps_attempts_and_due_times(yard: Yard) -> None:
    handler = Trial(retry=Retry(attempts=9, wait=fixed(3)))
    yard.send(1, "fail:2")
    yard.send(2)
    async with yard.run(handler) as run:
        await run.until(lambda: [row["attempts"] for row in yard.parked()] == [1, 0], "the first attempt")
        moment = time.monotonic() + yard.parked()[0]["wait"]
    assert handler.attempts(1)[-1] == 1
    due = yard.parked()[0]["due_at"]
    again = Trial(retry=handler.retry)
    async with yard.run(again) as run:
        await run.until(lambda: bool(run.seen(PartitionTaken)), "the take-over")
        # Read at once; on a machine so slow that it is due already, the attempts tell alone.
        assert [row["due_at"] for row in yard.parked() if row["attempts"] == 1] in ([due], [])
        await run.until(yard.has(1, 2), "the effects")
    assert again.attempts(1) == [2, 3]
    assert again.calls["p-1"][0].moment > moment - 0.05
    assert again.calls["p-1"][1].moment - again.calls["p-1"][0].moment > 2.9
    assert again.attempts(2) == [1]
    yard.check()


async def test_a_due_time_that_passed_while_nobody_ran_is_past(yard: Yard) -> None:
    yard.send(1, "fail:1")
    retry = Retry(attempts=3, wait=fixed(0.5))
    async with yard.run(Trial(retry=retry)) as run:
        await run.until(yard.holds(1), "the parking")
    await asyncio.sleep(0.6)
    async with yard.run(Trial(retry=retry)) as run:
        await run.until(yard.has(1), "the effect")


async def test_a_rebalance_keeps_attempts_and_due_times(yard: Yard) -> None:
    retry = Retry(attempts=9, wait=fixed(2))
    one, other = Trial(retry=retry), Trial(retry=retry)
    yard.send(1, "fail:3", partition=1)
    yard.send(2, "fail:3", partition=0)
    async with yard.run(one) as run:
        await run.until(yard.holds(2), "the parking")
        async with yard.run(other):
            await run.until(yard.has(1, 2), "the effects")
    for number in (1, 2):
        calls = sorted([*one.calls[f"p-{number}"], *other.calls[f"p-{number}"]], key=lambda call: call.moment)
        # The change of owners may cut an attempt off, which is then made again under its number.
        assert list(dict.fromkeys(call.attempt for call in calls)) == [1, 2, 3, 4]
        assert all(b.moment - a.moment > 1.9 for a, b in pairwise(calls) if b.attempt > a.attempt)
    assert one.attempts(1)[-1] < 4 or one.attempts(2)[-1] < 4
    yard.check()


async def test_each_attempt_is_made_once_and_on_time_however_many_are_due(yard: Yard) -> None:
    retry = Retry(attempts=9, wait=fixed(0.4))
    handler = Trial(retry=retry, concurrency=4)
    for number in range(120):
        yard.send(number, "fail:2" if number % 4 < 2 else "ok", key=b"%d" % (number % 24), partition=number % 2)
    async with yard.run(handler) as run:
        await run.until(lambda: len(yard.effects()) == 120, "all effects")
    for number in range(120):
        failing = number % 4 < 2
        attempts = handler.attempts(number)
        assert [n for n in attempts if n > 1] == ([2, 3] if failing else [])
        late = [call.moment for call in handler.calls[f"p-{number}"]][-3:]
        if failing:
            assert all(b - a > 0.39 for a, b in pairwise(late)), (number, attempts, late)
    effects = [int(number) for number in yard.effects()]
    for key in range(24):
        assert [n for n in effects if n % 24 == key] == list(range(key, 120, 24))
    failed = [(event.message_id, event.attempt) for event in run.seen(AttemptFailed)]
    assert len(failed) == len(set(failed)) == 120
    yard.check()


class Slow(Trial):
    """Takes its time for one account's payments."""

    async def handle(self, event: Payment, context: Context) -> None:
        await super().handle(event, context)
        if event.account == "long":
            await asyncio.sleep(0.02)


async def test_a_key_with_much_behind_it_does_not_make_others_late(yard: Yard) -> None:
    wait = 1.5
    handler = Slow(retry=Retry(attempts=9, wait=fixed(wait)), concurrency=1, batch_size=20)
    for number in range(400):
        yard.send(number, "defer:3600:2" if number == 0 else "ok", key=b"long")
    async with yard.run(handler) as run:
        await run.until(lambda: len(yard.parked()) == 400, "the parking")
        yard.send("other", "fail:8", key=b"other")
        await run.until(lambda: len(yard.parked()) == 401, "the other key's parking")
        yard.execute("UPDATE consumerkit_parked_messages SET due_at = now() WHERE message_id = 'p-0'")
        await run.until(yard.has("other"), "the other key's effect")
        await run.until(lambda: len(yard.effects()) == 401, "all effects")
    assert [n for n in yard.effects() if n != "other"] == [str(n) for n in range(400)]
    moments = [call.moment for call in handler.calls["p-other"]]
    long = [call.moment for name, calls in handler.calls.items() if name != "p-other" for call in calls]
    # How many of the long key were handled while it was due: counted, since a slow machine is late with all.
    ahead = [sum(before + wait < one < after for one in long) for before, after in pairwise(moments)]
    assert max(ahead) < 300, ahead  # all four hundred, were it not for its turn
    yard.check()


# What it costs, and its bound.


@pytest.mark.parametrize("ordering", Ordering)
async def test_a_bound_on_the_lot_holds_back_and_loses_nothing(yard: Yard, ordering: Ordering) -> None:
    handler = Trial(ordering=ordering, retry=Retry(attempts=100, wait=fixed(0.5)), parking_limit=4, batch_size=5)
    for number in range(60):
        yard.send(number, "forever" if number < 30 else "ok", key=b"%d" % (number % 20))
    async with yard.run(handler) as run:
        await run.until(lambda: len(yard.parked()) >= (1 if ordering is Ordering.PARTITION else 4), "a full lot")
        most = 0
        for _ in range(20):
            most = max(most, len(yard.parked()))
            await asyncio.sleep(0.05)
        assert most <= 4 + 5 * handler.concurrency
        assert yard.committed() < 60
        handler.healed = True
        await run.until(lambda: len(yard.effects()) == 60, "all effects")
    assert not yard.parked()
    yard.check()


async def test_deferring_is_no_attempt(yard: Yard) -> None:
    handler = Trial(retry=Retry(attempts=2, wait=fixed(0.1)))
    yard.send(1, "defer:0.4:4")
    yard.send(2)
    yard.send(3, key=b"other")
    async with yard.run(handler) as run:
        await run.until(yard.has(3), "the other key")
        await run.until(yard.has(1, 2), "the effects")
    assert handler.attempts(1) == [1] * 5 or handler.attempts(1) == [1] * 6
    moments = [call.moment for call in handler.calls["p-1"]][-4:]
    assert all(0.39 < b - a < 4 for a, b in pairwise(moments))
    assert yard.effects() == ["3", "1", "2"]
    assert not run.seen(AttemptFailed)
    yard.check()


# Copies.


@dataclass(frozen=True)
class Copy:
    """A copy of a parked message: where it stands."""

    key: bytes | None
    partition: int
    of: bytes | None = b"k"


COPIES = {
    "beside it": Copy(b"k", 0),
    "in another partition": Copy(b"k", 1),
    "under another key": Copy(b"other", 0),
    "without a key": Copy(None, 0),
    "of one without a key": Copy(None, 0, of=None),
    "of one without a key, in another partition": Copy(None, 1, of=None),
}


@pytest.mark.parametrize("ordering", Ordering)
@pytest.mark.parametrize("where", COPIES)
async def test_a_copy_of_a_parked_message_is_a_duplicate(yard: Yard, where: str, ordering: Ordering) -> None:
    copy = COPIES[where]
    if ordering is Ordering.PARTITION and copy.partition == 0:
        copy = Copy(copy.key, 1, copy.of)  # the partition itself waits
    body = Payment(account="x", amount=1, kind="forever").model_dump_json().encode()
    handler = Trial(ordering=ordering, retry=Retry(attempts=20, wait=fixed(2)), concurrency=1)
    yard.send(1, key=copy.of, value=body)
    async with yard.run(handler) as run:
        await run.until(yard.holds(1), "the parking")
        others = [20, 21, 22, 23]
        for number in others:
            yard.send(number, key=b"%d" % number, partition=number % 2)
        yard.send(1, key=copy.key, partition=copy.partition, value=body)
        for number in (24, 25):
            yard.send(number, key=b"%d" % number, partition=number % 2)
        flowing = [21, 23, 25] if ordering is Ordering.PARTITION else [*others, 24, 25]
        await run.until(yard.has(*flowing), "all others")
        assert len(yard.parked()) == 1
        handler.healed = True
        await run.until(yard.has(1), "the effect")
        await run.until(lambda: yard.committed() == 8, "all offsets")
    assert yard.effects().count("1") == 1
    assert sum(event.duplicates for event in run.seen(GroupCommitted)) == 1
    assert not run.seen(PartitionInDoubt)
    yard.check()


@pytest.mark.parametrize("ordering", Ordering)
@pytest.mark.parametrize("key", [b"k", None])
async def test_a_parked_message_that_is_delivered_again_holds_nothing_up(
    yard: Yard, ordering: Ordering, key: bytes | None
) -> None:
    yard.send(1, "forever", key=key)
    yard.send(2, key=b"other")
    async with yard.run(Trial(ordering=ordering, retry=Retry(attempts=20, wait=fixed(2)))) as run:
        await run.until(yard.holds(1), "the parking")
    yard.forget_offsets()
    handler = Trial(ordering=ordering, retry=Retry(attempts=20, wait=fixed(2)), healed=ordering is Ordering.PARTITION)
    async with yard.run(handler) as run:
        yard.send(3, key=b"third")
        if ordering is not Ordering.PARTITION:
            await run.until(yard.has(2, 3), "the others")
            assert len(yard.parked()) == 1
            handler.healed = True
        await run.until(yard.has(1, 2, 3), "all effects")
        await run.until(lambda: yard.committed() == 3, "all offsets")
    assert handler.attempts(1) == list(range(2, 2 + len(handler.attempts(1))))
    assert not run.seen(PartitionInDoubt)
    yard.check()


# The end of a parked message.


@pytest.mark.parametrize("kind, reason, attempts", [("reject:1", "rejected", 2), ("forever", "exhausted", 3)])
async def test_the_lots_dead_letters_let_the_next_of_the_key_go_on(
    yard: Yard, kind: str, reason: str, attempts: int
) -> None:
    handler = Trial(retry=Retry(attempts=3, wait=fixed(0.2)))
    yard.send(1, kind)
    yard.send(2, kind)
    yard.send(3)
    async with yard.run(handler) as run:
        await run.until(yard.has(3), "the third")
        await run.until(lambda: len(yard.published()) == 2, "the dead letters' topic")
    assert [(row["message_id"], row["reason"], row["attempts"]) for row in yard.dead()] == [
        ("p-1", reason, attempts),
        ("p-2", reason, attempts),
    ]
    sent = yard.broker.records(TOPIC)
    assert [(one.key, one.value) for one in yard.published()] == [(one.key, one.value) for one in sent[:2]]
    assert all(dict(one.headers)["consumerkit-dlq-attempts"] == b"%d" % attempts for one in yard.published())
    assert not yard.parked()
    yard.check()


class RawCommit(Trial):
    """Commits behind its session's back from its second attempt on."""

    async def handle(self, event: Payment, context: Context) -> None:
        await super().handle(event, context)
        if event.kind.startswith("fail"):
            await context.session.flush()
            connection = await (await context.session.connection()).get_raw_connection()
            assert connection.driver_connection is not None
            await connection.driver_connection.commit()


async def test_a_retry_that_commits_by_itself_is_not_run_again(yard: Yard) -> None:
    yard.send(1, "fail:1")
    yard.send(2)
    async with yard.run(RawCommit()) as run:
        await run.until(yard.has(2), "the next one")
    # What it did is durable, and nobody can tell how much of it: once, and dead.
    assert yard.effects().count("1") == 1
    assert [row["message_id"] for row in yard.dead()] == ["p-1"]
    assert not yard.parked()


class Paid(Payment):
    pass


class Typed(Trial):
    pass


def typed(**types: type[Payment]) -> Trial:
    return Typed(events=Events(by=header("type"), types=types, unknown="skip"))


async def test_a_parked_message_whose_type_is_not_declared_any_more_is_dead(yard: Yard) -> None:
    yard.send(1, "forever", headers=(("type", b"paid"),))
    yard.send(2, headers=(("type", b"other"),))
    async with yard.run(typed(paid=Paid, other=Payment)) as run:
        await run.until(yard.holds(2), "the parking")
    async with yard.run(typed(other=Payment)) as run:
        await run.until(yard.has(2), "the next one")
    assert [(row["message_id"], row["reason"]) for row in yard.dead()] == [("p-1", "undecodable")]
    assert yard.outcome(1) == 3


# Deploys that change what the rows depend on.


@pytest.mark.parametrize("after", Ordering)
@pytest.mark.parametrize("before", Ordering)
async def test_changing_the_order_leaves_nothing_behind(yard: Yard, before: Ordering, after: Ordering) -> None:
    retry = Retry(attempts=20, wait=fixed(0.3))
    for number in range(24):
        yard.send(number, "forever" if number in (1, 2, 14) else "ok", key=b"%d" % (number % 3), partition=0)
    async with yard.run(Trial(ordering=before, retry=retry)) as run:
        parked = 1 if before is Ordering.PARTITION else 3
        await run.until(lambda: len(yard.parked()) >= parked, "the parking")
        if before is Ordering.KEY:
            await run.until(yard.has(0, 3, 21), "the healthy key")
    async with yard.run(Trial(ordering=after, retry=retry, healed=True)) as run:
        await run.until(lambda: len(yard.effects()) == 24, "all effects")
    assert not yard.parked()
    effects = [int(number) for number in yard.effects()]
    if before is after is Ordering.KEY:
        assert all([n for n in effects if n % 3 == key] == list(range(key, 24, 3)) for key in range(3))
    if before is after is Ordering.PARTITION:
        assert effects == list(range(24))
    yard.check()


@pytest.mark.parametrize("after", [Ordering.KEY, Ordering.NONE])
async def test_what_was_redriven_to_wait_for_its_partition_runs_where_that_has_no_order_any_more(
    yard: Yard, after: Ordering
) -> None:
    for number, key in enumerate([b"a", b"b", None]):
        yard.send(number, "forever", key=key)
    async with yard.run(Trial(ordering=Ordering.PARTITION, retry=Retry(attempts=1))) as run:
        await run.until(lambda: len(yard.dead()) == 3, "the deaths")
    await redrive(yard.url, Selection())
    assert [row["due_at"] is None for row in yard.parked()] == [False, True, True]
    async with yard.run(Trial(ordering=after, healed=True)) as run:
        await run.until(yard.has(0, 1, 2), "what was redriven")
        yard.send(3, key=b"b")
        await run.until(yard.has(3), "a later one of a key that waited")
    assert (sorted(yard.effects()), yard.parked()) == (["0", "1", "2", "3"], [])


@pytest.mark.parametrize("after", [Ordering.KEY, Ordering.NONE])
async def test_what_waits_behind_one_that_the_brake_holds_goes_on_after_a_change_of_order(
    yard: Yard, after: Ordering
) -> None:
    yard.send("bad-0", value=b"{", key=b"x")
    yard.send("bad-1", value=b"{", key=b"x")
    for number, key in enumerate([b"a", b"b", None]):
        yard.send(number, key=key)
    async with yard.run(Trial(ordering=Ordering.PARTITION, brake=Brake(allowance=1, probe=fixed(1)))) as run:
        await run.until(yard.holds(4, 1), "the parking")
    assert [row["due_at"] is None for row in yard.parked()] == [False, True, True, True]
    async with yard.run(Trial(ordering=after)) as run:
        await run.until(yard.has(0, 1, 2), "what waited")
        await run.until(yard.holds(0, 2), "the one that cannot be read")


async def test_a_topic_that_gains_partitions_keeps_what_is_parked(yard: Yard) -> None:
    retry = Retry(attempts=9, wait=fixed(1))
    yard.send(1, "forever", partition=0)
    yard.send(2, partition=0)
    async with yard.run(Trial(retry=retry)) as run:
        await run.until(yard.holds(2), "the parking")
    yard.broker.add_partitions(TOPIC, 4)
    # The key's later messages may go to another partition, where nothing is known of what waits in the first.
    yard.send(3, partition=3)
    async with yard.run(Trial(retry=retry, healed=True)) as run:
        await run.until(yard.has(1, 2, 3), "all effects")
    assert [number for number in yard.effects() if number != "3"] == ["1", "2"]
    yard.check()


async def test_rows_of_a_handler_that_was_renamed_wait_for_it(yard: Yard) -> None:
    yard.send(1, "forever")
    async with yard.run(Trial(retry=Retry(attempts=9, wait=fixed(0.1)))) as run:
        await run.until(yard.holds(1), "the parking")
    async with yard.run(Trial(name="renamed", group="other", healed=True)) as run:
        await run.until(yard.has(1), "the new name's own effect, since its ledger is its own")
        await asyncio.sleep(0.5)
        assert len(yard.parked()) == 1
    async with yard.run(Trial(healed=True)) as run:
        await run.until(yard.holds(0), "the old name's retry")
    assert yard.effects() == ["1", "1"]


async def test_rows_of_a_topic_that_is_no_longer_consumed_wait_and_are_told_of(
    yard: Yard, caplog: pytest.LogCaptureFixture
) -> None:
    yard.broker.create_topic("u", 1)
    body = Payment(account="x", amount=1, kind="forever").model_dump_json().encode()
    yard.broker.append("u", body, key=b"k", headers=(("message-id", b"p-1"),), partition=0)
    async with yard.run(Trial(topic="u", retry=Retry(attempts=9, wait=fixed(0.1)))) as run:
        await run.until(yard.holds(1), "the parking")
    warning = (
        "handler 'credit': 1 messages of topic 'u' are parked, and it consumes that no more; they wait until it does"
    )
    assert warning not in caplog.messages
    async with yard.run(Trial(healed=True)) as run:
        run.worker.adopt(["credit"])
        yard.send(2)
        await run.until(yard.has(2), "a message of the other topic")
        await asyncio.sleep(0.5)
    assert caplog.messages.count(warning) == 1
    assert len(yard.parked()) == 1
    async with yard.run(Trial(topic="u", healed=True)) as run:
        run.worker.adopt(["credit"])
        await run.until(yard.has(1, 2), "its retry")
    assert not yard.parked()
    yard.check()


async def test_rows_of_a_handler_that_was_removed_wait_and_are_counted(yard: Yard) -> None:
    yard.send(1, "forever")
    async with yard.run(Trial(retry=Retry(attempts=9, wait=fixed(0.1)))) as run:
        await run.until(yard.holds(1), "the parking")
    async with yard.run(Trial(name="another", group="another", healed=True)) as run:
        await run.until(yard.has(1), "what another handler makes of it")
        await asyncio.sleep(0.5)
    engine = create_engine(yard.url)
    with Session(engine) as session:
        counted = occupancy.count_by_handler(session, DEFAULT_TABLES)
    engine.dispose()
    assert [(name, parked, due, held) for name, parked, due, _, held in counted] == [("credit", 1, 1, 0)]


# Taking partitions over.


async def test_a_partition_that_goes_and_comes_while_it_is_waited_for_is_taken_all_the_same(yard: Yard) -> None:
    lock = await asyncio.to_thread(hold_fence, yard, 0)
    try:
        yard.send(1, partition=0)
        yard.send(2, partition=1)
        async with yard.run(Trial()) as run:
            await run.until(yard.has(2), "the partition that nobody holds")
            for _ in range(8):
                await yard.broker.expire("credit")
                await asyncio.sleep(0.3)
            assert TopicPartition(TOPIC, 0) not in {event.partition for event in run.seen(PartitionTaken)}
            lock.close()
            await run.until(yard.has(1), "the partition that was held")
    finally:
        lock.close()


def hold_fence(yard: Yard, partition: int) -> "psycopg.Connection[tuple[object, ...]]":
    """Hold a partition's fence as a zombie's open transaction does; closing the connection ends it."""
    connection = psycopg.connect(yard.postgres.dsn(yard.database))
    number = fence.number(DEFAULT_TABLES.within("public"), 1, TopicPartition(TOPIC, partition))
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", [number])
    return connection


# What waits never holds what can run.


class UntilGone(Trial):
    """Defers all until a fresh message has come, which is behind them."""

    def decide(self, kind: str, message_id: str, attempt: int) -> None:
        if kind == "go":
            self.healed = True
        elif not self.healed:
            raise Defer(0.01, "not yet")


async def test_fresh_messages_have_their_turn_however_much_is_due(yard: Yard) -> None:
    handler = UntilGone(concurrency=1, batch_size=5)
    for number in range(24):
        yard.send(number, key=b"%d" % number)
    yard.send("go", "go", key=b"go")
    async with yard.run(handler) as run:
        await run.until(lambda: len(yard.effects()) == 25, "all effects")
    assert not yard.parked()
    yard.check()


async def test_a_key_with_much_behind_it_leaves_fresh_messages_their_turn(yard: Yard) -> None:
    handler = Slow(retry=LONG, concurrency=1, batch_size=5, batch_time=0.05)
    for number in range(200):
        yard.send(number, "defer:3600:2" if number == 0 else "ok", key=b"long")
    async with yard.run(handler) as run:
        await run.until(lambda: len(yard.parked()) == 200, "the parking")
        yard.execute("UPDATE consumerkit_parked_messages SET due_at = now() WHERE message_id = 'p-0'")
        await run.until(lambda: len(yard.effects()) > 10, "some of what waited")
        yard.send("fresh", key=b"fresh")
        await run.until(lambda: len(yard.effects()) == 201, "all effects")
    effects = yard.effects()
    assert effects.index("fresh") < 190
    assert [n for n in effects if n != "fresh"] == [str(n) for n in range(200)]
    yard.check()


class Gated(Trial):
    """Fails the first attempts; then those of one lane wait until the other lane's is through."""

    def __init__(self, **declared: Any) -> None:
        super().__init__(**declared)
        self.through = asyncio.Event()

    async def handle(self, event: Payment, context: Context) -> None:
        await super().handle(event, context)
        if context.message_id == "p-other":
            self.through.set()
        else:
            await self.through.wait()


async def test_what_is_due_of_a_busy_lane_makes_no_other_lane_late(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (parked_poller, lane):
        monkeypatch.setattr(module, "MOST_DUE", 5)
    monkeypatch.setattr(parked_poller, "AT_ONCE", 5)
    handler = Gated(retry=Retry(attempts=5, wait=fixed(3600)), concurrency=2)
    keys = [b"%d" % number for number in range(200)]
    busy = [key for key in keys if hash(key) % 2 == 0][:22]
    [other, *_] = [key for key in keys if hash(key) % 2 == 1]
    for number, key in enumerate(busy):
        yard.send(number, "fail:1", key=key)
    yard.send("other", "fail:1", key=other)
    async with yard.run(handler, transaction_timeout=600.0) as run:
        await run.until(yard.holds(23), "the parking")
        # All due, the other lane's last.
        yard.execute("UPDATE consumerkit_parked_messages SET due_at = now() - interval '1 hour' + id * interval '1 ms'")
        await run.until(lambda: len(yard.effects()) == 23, "all effects")
    yard.check()
