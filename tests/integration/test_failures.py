"""The failure rule: what a failing message costs, what counts as an attempt, and what a handler can do wrong."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from consumerkit import Context, Retry, fixed
from consumerkit.errors import TransactionMisused
from consumerkit.events import AttemptFailed, GroupCommitted, GroupRolledBack
from tests.crash.model import Payment
from tests.integration.credit import Credit, PlainCredit
from tests.integration.kafka_stage import KafkaStage, effect, payment
from tests.variants import further_cases


@pytest.mark.parametrize("kind", [Credit, *further_cases(PlainCredit)])
async def test_one_failing_message_in_two_hundred_costs_less_than_twice_the_invocations(
    stage: KafkaStage, other_stage: KafkaStage, kind: type[Credit | PlainCredit]
) -> None:
    total, every = 6000, 200
    costs = {}
    for where, failing in ((stage, 0), (other_stage, total // every)):
        handler = kind(where, retry=Retry(attempts=2, wait=fixed(0)))
        where.send(
            [
                payment(n, kind="fail" if failing and n % every == 77 else "ok", account=f"a-{n}", partition=n % 2)
                for n in range(total)
            ]
        )
        async with where.run(handler) as run:
            await run.until(where.finished(total - failing, failing), "all outcomes")
        where.check_ledger()
        # A failing message's own transaction is no batch; a transaction of several counts,
        # committed or not.
        tried = [g.processed + g.dead for g in run.seen(GroupCommitted) if g.processed]
        tried += [event.size for event in run.seen(GroupRolledBack)]
        mean = sum(tried) / len(tried)
        costs[failing] = handler.invocations.total()
        print(f"{failing} failing: {handler.invocations.total()} invocations, {len(tried)} groups of {mean:.0f}")
        assert mean >= 100
    assert costs[0] == total
    assert total < costs[total // every] < 2 * total


async def test_attempts_wait_outside_any_transaction_while_other_lanes_flow(stage: KafkaStage) -> None:
    handler = Credit(stage, retry=Retry(attempts=4, wait=fixed(2)), concurrency=4)
    stage.send([payment("bad", kind="fail", account="bad")])
    stage.send([payment(n, account=f"a-{n % 50}") for n in range(1000)])
    open_transactions = []
    async with stage.run(handler) as run:
        await run.until(lambda: handler.invocations["p-bad"] >= 2, "the second attempt")
        await run.until(lambda: stage.count_effects() > 500, "what the other lanes hold")
        await asyncio.sleep(1.2)
        found = (
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%' "
            "AND clock_timestamp() - state_change > interval '1 second'"
        )
        open_transactions.append(stage.rows(found)[0]["n"])
        await run.until(stage.finished(1000, 1), "everything")
    assert open_transactions == [0]
    story = [type(event) for event in list(run.events) if isinstance(event, GroupCommitted | AttemptFailed)]
    first, last = story.index(AttemptFailed), len(story) - 1 - story[::-1].index(AttemptFailed)
    assert GroupCommitted in story[first:last]
    moments = handler.moments["p-bad"]
    alone = moments[-4:]
    assert [b - a > 1.95 for a, b in pairwise(alone)] == [True] * 3
    assert [event.attempt for event in run.seen(AttemptFailed)] == [1, 2, 3, 4]
    assert [(row["reason"], row["attempts"]) for row in stage.dead()] == [("exhausted", 4)]


@pytest.mark.parametrize(
    "bad, reason, error",
    [
        pytest.param("reject", "rejected", "consumerkit.errors.Reject", id="Reject"),
        pytest.param("value", "exhausted", "ValueError", id="outside-on"),
    ],
)
async def test_what_no_retry_can_help_is_dead_at_once(stage: KafkaStage, bad: str, reason: str, error: str) -> None:
    handler = Credit(stage, retry=Retry(attempts=5, wait=fixed(30), on=(TimeoutError,)))
    stage.send([payment(n, kind=bad if n == 50 else "ok", account=f"a-{n}") for n in range(100)])
    async with stage.run(handler) as run:
        await run.until(stage.finished(99, 1), "all outcomes")
    (row,) = stage.dead()
    assert (row["message_id"], row["reason"], row["error_type"], row["attempts"]) == ("p-50", reason, error, 1)
    assert handler.invocations["p-50"] <= 2
    stage.check_ledger()


async def test_a_failure_in_a_group_is_no_attempt(stage: KafkaStage) -> None:
    handler = Credit(stage)
    stage.send([payment(n, kind="flaky" if n % 40 == 3 else "ok", account=f"a-{n}") for n in range(400)])
    async with stage.run(handler) as run:
        await run.until(stage.finished(400), "all effects")
    assert [event.attempt for event in run.seen(AttemptFailed)].count(3) == 0
    assert not stage.dead()
    stage.check_ledger()


async def swallow(session: AsyncSession) -> None:
    await session.execute(text("INSERT INTO numbers VALUES (2)"))
    with suppress(IntegrityError):
        await session.execute(text("INSERT INTO numbers VALUES (1)"))


async def commit_and_go_on(session: AsyncSession) -> None:
    with suppress(TransactionMisused):
        await session.commit()


async def commit_text_and_go_on(session: AsyncSession) -> None:
    with suppress(TransactionMisused):
        await session.execute(text("COMMIT"))


async def raw_commit(session: AsyncSession) -> None:
    connection = await (await session.connection()).get_raw_connection()
    assert connection.driver_connection is not None
    await connection.driver_connection.rollback()


async def begin_again(session: AsyncSession) -> None:
    await session.rollback()
    await session.execute(text("SELECT 1"))


MISUSES: dict[str, Callable[[AsyncSession], Awaitable[object]]] = {
    "commit": AsyncSession.commit,
    "rollback": AsyncSession.rollback,
    "close": AsyncSession.close,
    "invalidate": AsyncSession.invalidate,
    "commit-as-text": lambda session: session.execute(text("COMMIT")),
    "end-in-a-comment": lambda session: session.execute(text("/* now */ END")),
    "rollback-as-text": lambda session: session.execute(text("ROLLBACK")),
    "commit-swallowed": commit_and_go_on,
    "commit-as-text-swallowed": commit_text_and_go_on,
    "rollback-and-begin": begin_again,
    "rollback-behind-the-session": raw_commit,
    "swallowed-integrity-error": swallow,
}


class Misuser(Credit):
    misuse: str

    async def handle(self, event: Payment, context: Context) -> object:
        self.invoked(context)
        context.session.add(effect(event, context))
        if event.kind == "misuse":
            await MISUSES[self.misuse](context.session)
            await context.session.execute(text("SELECT 1"))
        return None


@pytest.mark.parametrize("misuse", MISUSES)
async def test_a_handler_that_breaks_its_transaction_breaks_nothing_else(stage: KafkaStage, misuse: str) -> None:
    await asyncio.to_thread(
        stage.execute, "CREATE TABLE numbers (n integer PRIMARY KEY)", "INSERT INTO numbers VALUES (1)"
    )
    handler = Misuser(stage, misuse=misuse, retry=Retry(attempts=2, wait=fixed(0.01)))
    stage.send([payment(n, kind="misuse" if n == 20 else "ok", account=f"a-{n}") for n in range(60)])
    async with stage.run(handler) as run:
        harmless = misuse == "commit-as-text-swallowed"  # refused, and nothing had happened
        await run.until(stage.finished(60 if harmless else 59, 0 if harmless else 1), "all outcomes")
    stage.check_ledger()
    assert len({row["message_id"] for row in stage.effects()}) == stage.count_effects()
    if not harmless:
        (row,) = stage.dead()
        assert (row["message_id"], row["reason"], row["attempts"]) == ("p-20", "exhausted", 2)
    assert [row["n"] for row in stage.rows("SELECT n FROM numbers")] == [1]


class Referrer(Credit):
    """Adds a row whose reference is checked only at COMMIT."""

    async def handle(self, event: Payment, context: Context) -> object:
        self.invoked(context)
        context.session.add(effect(event, context))
        known = 2 if event.kind == "bad" else 1
        await context.session.execute(text("INSERT INTO lines VALUES (:n)"), {"n": known})
        return None


async def test_a_deferred_constraint_fails_its_message_alone(stage: KafkaStage) -> None:
    await asyncio.to_thread(
        stage.execute,
        "CREATE TABLE numbers (n integer PRIMARY KEY)",
        "INSERT INTO numbers VALUES (1)",
        "CREATE TABLE lines (n integer REFERENCES numbers DEFERRABLE INITIALLY DEFERRED)",
    )
    handler = Referrer(stage, retry=Retry(attempts=2, wait=fixed(0.01)))
    stage.send([payment(n, kind="bad" if n in (7, 23) else "ok", account=f"a-{n}") for n in range(40)])
    async with stage.run(handler) as run:
        await run.until(stage.finished(38, 2), "all outcomes")
    assert [row["message_id"] for row in stage.dead()] in (["p-7", "p-23"], ["p-23", "p-7"])
    stage.check_ledger()


class LateRow(Credit):
    """Its bad row fails when another message's query flushes it."""

    async def handle(self, event: Payment, context: Context) -> object:
        self.invoked(context)
        row = effect(event, context)
        if event.kind == "bad":
            row.account = None  # type: ignore[assignment] # what the test is about
        context.session.add(row)
        if event.kind == "query":
            await context.session.execute(text("SELECT 1 FROM effects"))
        return None


async def test_blame_that_falls_on_another_message_kills_none(stage: KafkaStage) -> None:
    handler = LateRow(stage, retry=Retry(attempts=1))
    kinds = {11: "bad", 12: "query", 13: "query"}
    stage.send([payment(n, kind=kinds.get(n, "ok"), account="one") for n in range(40)])
    async with stage.run(handler) as run:
        await run.until(stage.finished(39, 1), "all outcomes")
    assert [row["message_id"] for row in stage.dead()] == ["p-11"]
    stage.check_ledger()


class Mover(Credit):
    """Reads a balance, adds to it, writes it: two messages on one row."""

    async def handle(self, event: Payment, context: Context) -> object:
        context.session.add(effect(event, context))
        asked = await context.session.execute(
            text("SELECT balance FROM balances WHERE account = :a FOR UPDATE"), {"a": event.account}
        )
        new = asked.scalar_one() + event.amount
        await context.session.execute(
            text("UPDATE balances SET balance = :b WHERE account = :a"), {"a": event.account, "b": new}
        )
        return None


async def test_two_messages_of_one_group_on_one_row_both_count(stage: KafkaStage) -> None:
    await asyncio.to_thread(
        stage.execute,
        "CREATE TABLE balances (account text PRIMARY KEY, balance bigint)",
        "INSERT INTO balances VALUES ('x', 0), ('y', 0)",
    )
    stage.send([payment(n, account="xy"[n % 2], amount=n, partition=n % 2) for n in range(300)])
    async with stage.run(Mover(stage, batch_time=60.0)) as run:
        await run.until(stage.finished(300), "all effects")
    balances = {row["account"]: row["balance"] for row in stage.rows("SELECT * FROM balances")}
    assert balances == {"x": sum(range(0, 300, 2)), "y": sum(range(1, 300, 2))}
    assert max(run.groups()) > 3


async def test_copies_and_conflicts_within_one_group(narrow_stage: KafkaStage) -> None:
    stage = narrow_stage
    one, other = payment(1, amount=5), payment(1, amount=6)
    stage.send([one, payment(2), one, other, one, payment(3), other])
    async with stage.run(Credit(stage, concurrency=1)) as run:
        await run.until(stage.finished(3, 2), "all outcomes")
        await run.until(lambda: stage.committed(stage.topic) == {0: 7}, "the offset past all")
    assert sorted(row["offset"] for row in stage.effects()) == [0, 1, 5]
    assert [(row["reason"], row["offset"]) for row in stage.dead()] == [("conflict", 3), ("conflict", 6)]
    assert sum(event.duplicates for event in run.seen(GroupCommitted)) == 2
    stage.check_ledger()


async def test_a_copy_of_a_dead_message_is_not_tried_again(stage: KafkaStage) -> None:
    handler = Credit(stage, retry=Retry(attempts=1))
    bad = payment(1, kind="fail")
    stage.send([bad, payment(2), bad])
    async with stage.run(handler) as run:
        await run.until(stage.finished(1, 1), "the outcomes")
        stage.send([bad, payment(3)])
        await run.until(stage.finished(2, 1), "the last one's effect")
    assert len(stage.dead()) == 1
    assert sum(event.duplicates_of_dead for event in run.seen(GroupCommitted)) == 2
    assert handler.invocations["p-1"] <= 3
