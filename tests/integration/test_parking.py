"""The parking lot: messages that wait for their next attempt, messages behind them, and others."""

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
from consumerkit.engine.lanes.parked_poller import ParkedPoller
from consumerkit.errors import Defer
from consumerkit.events import AttemptFailed, GroupCommitted, PartitionInDoubt, PartitionTaken
from consumerkit.message import TopicPartition
from consumerkit.redrive import Selection, redrive
from consumerkit.storage import fence
from consumerkit.storage.parking import occupancy
from consumerkit.storage.parking.parked import ParkedMessage
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.crash.model import Payment
from tests.integration.payments import TOPIC, BatchTrial, PaymentStage, PlainTrial, Trial
from tests.services import PostgresServer

LONG = Retry(attempts=5, wait=fixed(60))


@pytest.fixture
async def payments(postgres: PostgresServer, database: str) -> PaymentStage:
    made = PaymentStage(postgres, database)
    await made.create_tables()
    return made


# What is parked, and when.


async def test_a_failure_is_recorded_with_the_whole_message(payments: PaymentStage) -> None:
    payments.send(1, "forever", headers=(("trace", b"\xff\x00"), ("trace", None)))
    async with payments.run(Trial(retry=LONG)) as run:
        await run.until(payments.holds(1), "the parking")
        await run.until(lambda: payments.committed() == 1, "the offset past it")
    (row,) = payments.parked()
    sent = payments.broker.records(TOPIC)[0]
    assert (row["topic"], row["topic_id"], row["partition"], row["offset"]) == (TOPIC, sent.topic_id, 0, 0)
    assert (row["key"], row["value"], row["timestamp"]) == (sent.key, sent.value, sent.timestamp)
    assert (row["message_id"], row["attempts"]) == ("p-1", 1)
    assert (row["error_type"], row["error"]) == ("tests.integration.payments.ProviderDown", "for ever")
    assert "in decide" in row["stack"]
    assert 50 < row["wait"] <= 60
    assert row["first_failed_at"] is not None
    assert payments.outcome(1) == 2
    assert payments.effects() == []


async def test_attempts_in_place_come_first(payments: PaymentStage) -> None:
    handler = Trial(retry=Retry(attempts=6, wait=fixed(0.2), in_place=3))
    payments.send(1, "fail:4")
    async with payments.run(handler) as run:
        await run.until(payments.holds(1), "the parking")
        assert [row["attempts"] for row in payments.parked()] == [3]
        await run.until(payments.has(1), "the effect")
    assert handler.attempts(1) == [1, 2, 3, 4, 5]
    payments.check()


@pytest.mark.parametrize("kind", [Trial, PlainTrial, BatchTrial])
async def test_later_messages_of_a_parked_key_wait_in_order_and_other_keys_flow(
    payments: PaymentStage, kind: type[Trial | PlainTrial | BatchTrial]
) -> None:
    handler = kind(ordering=Ordering.KEY, retry=Retry(attempts=5, wait=fixed(0.7)))
    payments.send(1, "fail:2", key=b"a")
    for number in range(2, 12):
        payments.send(number, "fail:1" if number == 5 else "ok", key=b"a" if number % 2 else b"b")
    async with payments.run(handler) as run:
        await run.until(payments.has(2, 4, 6, 8, 10), "the other key's effects")
        assert payments.effects() == ["2", "4", "6", "8", "10"]
        payments.send(12, key=b"b")
        payments.send(13, key=b"a")
        await run.until(payments.has(12), "a later one of the other key")
        await run.until(lambda: len(payments.effects()) == 13, "everything")
    assert [n for n in payments.effects() if int(n) % 2] == ["1", "3", "5", "7", "9", "11", "13"]
    assert handler.attempts(3)[-1] == 1
    assert not run.seen(PartitionInDoubt)
    payments.check()


async def test_messages_without_a_key_have_no_order(payments: PaymentStage) -> None:
    payments.send(1, "forever", key=None)
    payments.send(2, key=None)
    async with payments.run(Trial(retry=LONG)) as run:
        await run.until(payments.has(2), "the second")
    assert len(payments.parked()) == 1


async def test_with_order_per_partition_the_partition_waits_and_others_flow(payments: PaymentStage) -> None:
    handler = Trial(ordering=Ordering.PARTITION, retry=Retry(attempts=1000, wait=fixed(0.3)))
    for number in range(20):
        payments.send(number, "forever" if number == 6 else "ok", key=b"%d" % number, partition=number % 2)
    async with payments.run(handler) as run:
        await run.until(payments.has(*range(1, 20, 2)), "the other partition")
        await run.until(payments.holds(1), "the parking")
        assert [n for n in payments.effects() if int(n) % 2 == 0] == ["0", "2", "4"]
        handler.healed = True
        await run.until(lambda: len(payments.effects()) == 20, "everything")
    assert [n for n in payments.effects() if int(n) % 2 == 0] == [str(n) for n in range(0, 20, 2)]
    assert not run.seen(PartitionInDoubt)
    payments.check()


async def test_with_order_per_partition_what_waits_does_not_take_the_memory_of_other_partitions(
    payments: PaymentStage,
) -> None:
    payments.send("bad", "forever", partition=0)
    async with payments.run(Trial(ordering=Ordering.PARTITION, retry=LONG), memory_budget=100_000) as run:
        await run.until(payments.holds(1), "the parking")
        for number in range(1000):
            payments.send(number, partition=0)
        await asyncio.sleep(1.5)
        payments.send("other", partition=1)
        await run.until(payments.has("other"), "the other partition's message")


async def test_without_order_only_the_one_waits(payments: PaymentStage) -> None:
    payments.send(1, "forever")
    for number in range(2, 30):
        payments.send(number)
    async with payments.run(Trial(ordering=Ordering.NONE, retry=LONG)) as run:
        await run.until(payments.has(*range(2, 30)), "all others")
    assert [row["message_id"] for row in payments.parked()] == ["p-1"]
    payments.check()


# What outlives a process and an assignment.


async def test_a_restart_keeps_attempts_and_due_times(payments: PaymentStage) -> None:
    handler = Trial(retry=Retry(attempts=9, wait=fixed(3)))
    payments.send(1, "fail:2")
    payments.send(2)
    async with payments.run(handler) as run:
        await run.until(lambda: [row["attempts"] for row in payments.parked()] == [1, 0], "the first attempt")
        moment = time.monotonic() + payments.parked()[0]["wait"]
    assert handler.attempts(1)[-1] == 1
    due = payments.parked()[0]["due_at"]
    again = Trial(retry=handler.retry)
    async with payments.run(again) as run:
        await run.until(lambda: bool(run.seen(PartitionTaken)), "the take-over")
        # Read at once; on a slow machine it may be due already, and then only the attempts show it.
        assert [row["due_at"] for row in payments.parked() if row["attempts"] == 1] in ([due], [])
        await run.until(payments.has(1, 2), "the effects")
    assert again.attempts(1) == [2, 3]
    assert again.calls["p-1"][0].moment > moment - 0.05
    assert again.calls["p-1"][1].moment - again.calls["p-1"][0].moment > 2.9
    assert again.attempts(2) == [1]
    payments.check()


async def test_a_due_time_that_passed_while_nobody_ran_is_past(payments: PaymentStage) -> None:
    payments.send(1, "fail:1")
    retry = Retry(attempts=3, wait=fixed(0.5))
    async with payments.run(Trial(retry=retry)) as run:
        await run.until(payments.holds(1), "the parking")
    await asyncio.sleep(0.6)
    async with payments.run(Trial(retry=retry)) as run:
        await run.until(payments.has(1), "the effect")


async def test_a_rebalance_keeps_attempts_and_due_times(payments: PaymentStage) -> None:
    retry = Retry(attempts=9, wait=fixed(2))
    one, other = Trial(retry=retry), Trial(retry=retry)
    payments.send(1, "fail:3", partition=1)
    payments.send(2, "fail:3", partition=0)
    async with payments.run(one) as run:
        await run.until(payments.holds(2), "the parking")
        async with payments.run(other):
            await run.until(payments.has(1, 2), "the effects")
    for number in (1, 2):
        calls = sorted([*one.calls[f"p-{number}"], *other.calls[f"p-{number}"]], key=lambda call: call.moment)
        # The change of owners may cut an attempt off, which is then made again under its number.
        assert list(dict.fromkeys(call.attempt for call in calls)) == [1, 2, 3, 4]
        assert all(b.moment - a.moment > 1.9 for a, b in pairwise(calls) if b.attempt > a.attempt)
    assert one.attempts(1)[-1] < 4 or one.attempts(2)[-1] < 4
    payments.check()


async def test_each_attempt_is_made_once_and_on_time_however_many_are_due(payments: PaymentStage) -> None:
    retry = Retry(attempts=9, wait=fixed(0.4))
    handler = Trial(retry=retry, concurrency=4)
    for number in range(120):
        payments.send(number, "fail:2" if number % 4 < 2 else "ok", key=b"%d" % (number % 24), partition=number % 2)
    async with payments.run(handler) as run:
        await run.until(lambda: len(payments.effects()) == 120, "all effects")
    for number in range(120):
        failing = number % 4 < 2
        attempts = handler.attempts(number)
        assert [n for n in attempts if n > 1] == ([2, 3] if failing else [])
        late = [call.moment for call in handler.calls[f"p-{number}"]][-3:]
        if failing:
            assert all(b - a > 0.39 for a, b in pairwise(late)), (number, attempts, late)
    effects = [int(number) for number in payments.effects()]
    for key in range(24):
        assert [n for n in effects if n % 24 == key] == list(range(key, 120, 24))
    failed = [(event.message_id, event.attempt) for event in run.seen(AttemptFailed)]
    assert len(failed) == len(set(failed)) == 120
    payments.check()


class Slow(Trial):
    """Takes its time for one account's payments."""

    async def handle(self, event: Payment, context: Context) -> None:
        await super().handle(event, context)
        if event.account == "long":
            await asyncio.sleep(0.02)


@pytest.mark.variant
async def test_a_key_with_much_behind_it_does_not_make_others_late(payments: PaymentStage) -> None:
    wait = 1.5
    handler = Slow(retry=Retry(attempts=9, wait=fixed(wait)), concurrency=1, batch_size=20)
    for number in range(400):
        payments.send(number, "defer:3600:2" if number == 0 else "ok", key=b"long")
    async with payments.run(handler) as run:
        await run.until(lambda: len(payments.parked()) == 400, "the parking")
        payments.send("other", "fail:8", key=b"other")
        await run.until(lambda: len(payments.parked()) == 401, "the other key's parking")
        payments.execute("UPDATE consumerkit_parked_messages SET due_at = now() WHERE message_id = 'p-0'")
        await run.until(payments.has("other"), "the other key's effect")
        await run.until(lambda: len(payments.effects()) == 401, "all effects")
    assert [n for n in payments.effects() if n != "other"] == [str(n) for n in range(400)]
    moments = [call.moment for call in handler.calls["p-other"]]
    long = [call.moment for name, calls in handler.calls.items() if name != "p-other" for call in calls]
    # How many of the long key were handled while it was due: counted, since a slow machine is late with all.
    ahead = [sum(before + wait < one < after for one in long) for before, after in pairwise(moments)]
    assert max(ahead) < 300, ahead  # all four hundred, were it not for its turn
    payments.check()


# What it costs, and its bound.


@pytest.mark.parametrize("ordering", Ordering)
async def test_a_bound_on_the_lot_holds_back_and_loses_nothing(payments: PaymentStage, ordering: Ordering) -> None:
    handler = Trial(ordering=ordering, retry=Retry(attempts=100, wait=fixed(0.5)), parking_limit=4, batch_size=5)
    for number in range(60):
        payments.send(number, "forever" if number < 30 else "ok", key=b"%d" % (number % 20))
    async with payments.run(handler) as run:
        await run.until(lambda: len(payments.parked()) >= (1 if ordering is Ordering.PARTITION else 4), "a full lot")
        most = 0
        for _ in range(20):
            most = max(most, len(payments.parked()))
            await asyncio.sleep(0.05)
        assert most <= 4 + 5 * handler.concurrency
        assert payments.committed() < 60
        handler.healed = True
        await run.until(lambda: len(payments.effects()) == 60, "all effects")
    assert not payments.parked()
    payments.check()


async def test_deferring_is_no_attempt(payments: PaymentStage) -> None:
    handler = Trial(retry=Retry(attempts=2, wait=fixed(0.1)))
    payments.send(1, "defer:0.4:4")
    payments.send(2)
    payments.send(3, key=b"other")
    async with payments.run(handler) as run:
        await run.until(payments.has(3), "the other key")
        await run.until(payments.has(1, 2), "the effects")
    assert handler.attempts(1) == [1] * 5 or handler.attempts(1) == [1] * 6
    moments = [call.moment for call in handler.calls["p-1"]][-4:]
    assert all(0.39 < b - a < 4 for a, b in pairwise(moments))
    assert payments.effects() == ["3", "1", "2"]
    assert not run.seen(AttemptFailed)
    payments.check()


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


async def test_a_parked_message_that_is_handed_out_again_while_it_ends_is_no_duplicate(
    payments: PaymentStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poller may have read its row before the lane finished it; it was sent once."""
    hand_out = ParkedPoller._hand_out

    def twice(poller: ParkedPoller, parked: ParkedMessage) -> bool:
        return hand_out(poller, parked) and poller._lanes.put_due(parked)

    monkeypatch.setattr(ParkedPoller, "_hand_out", twice)
    body = Payment(account="x", amount=1, kind="forever").model_dump_json().encode()
    handler = Trial(retry=Retry(attempts=20, wait=fixed(0.5)), concurrency=1)
    payments.send(1, value=body)
    async with payments.run(handler) as run:
        await run.until(payments.holds(1), "the parking")
        handler.healed = True
        await run.until(payments.has(1), "the effect")
        await run.until(lambda: run.seen(GroupCommitted)[-1].processed == 0, "the second run")
    assert payments.effects().count("1") == 1
    assert [event.duplicates for event in run.seen(GroupCommitted) if event.duplicates] == []
    payments.check()


@pytest.mark.parametrize("ordering", Ordering)
@pytest.mark.parametrize("where", COPIES)
async def test_a_copy_of_a_parked_message_is_a_duplicate(
    payments: PaymentStage, where: str, ordering: Ordering
) -> None:
    copy = COPIES[where]
    if ordering is Ordering.PARTITION and copy.partition == 0:
        copy = Copy(copy.key, 1, copy.of)  # the partition itself waits
    body = Payment(account="x", amount=1, kind="forever").model_dump_json().encode()
    handler = Trial(ordering=ordering, retry=Retry(attempts=20, wait=fixed(2)), concurrency=1)
    payments.send(1, key=copy.of, value=body)
    async with payments.run(handler) as run:
        await run.until(payments.holds(1), "the parking")
        others = [20, 21, 22, 23]
        for number in others:
            payments.send(number, key=b"%d" % number, partition=number % 2)
        payments.send(1, key=copy.key, partition=copy.partition, value=body)
        for number in (24, 25):
            payments.send(number, key=b"%d" % number, partition=number % 2)
        flowing = [21, 23, 25] if ordering is Ordering.PARTITION else [*others, 24, 25]
        await run.until(payments.has(*flowing), "all others")
        assert len(payments.parked()) == 1
        handler.healed = True
        await run.until(payments.has(1), "the effect")
        await run.until(lambda: payments.committed() == 8, "all offsets")
    assert payments.effects().count("1") == 1
    assert sum(event.duplicates for event in run.seen(GroupCommitted)) == 1
    assert not run.seen(PartitionInDoubt)
    payments.check()


@pytest.mark.parametrize("ordering", Ordering)
@pytest.mark.parametrize("key", [b"k", None])
async def test_a_parked_message_that_is_delivered_again_holds_nothing_up(
    payments: PaymentStage, ordering: Ordering, key: bytes | None
) -> None:
    payments.send(1, "forever", key=key)
    payments.send(2, key=b"other")
    async with payments.run(Trial(ordering=ordering, retry=Retry(attempts=20, wait=fixed(2)))) as run:
        await run.until(payments.holds(1), "the parking")
    payments.forget_offsets()
    handler = Trial(ordering=ordering, retry=Retry(attempts=20, wait=fixed(2)), healed=ordering is Ordering.PARTITION)
    async with payments.run(handler) as run:
        payments.send(3, key=b"third")
        if ordering is not Ordering.PARTITION:
            await run.until(payments.has(2, 3), "the others")
            assert len(payments.parked()) == 1
            handler.healed = True
        await run.until(payments.has(1, 2, 3), "all effects")
        await run.until(lambda: payments.committed() == 3, "all offsets")
    assert handler.attempts(1) == list(range(2, 2 + len(handler.attempts(1))))
    assert not run.seen(PartitionInDoubt)
    payments.check()


# The end of a parked message.


@pytest.mark.parametrize("kind, reason, attempts", [("reject:1", "rejected", 2), ("forever", "exhausted", 3)])
async def test_the_lots_dead_letters_let_the_next_of_the_key_go_on(
    payments: PaymentStage, kind: str, reason: str, attempts: int
) -> None:
    handler = Trial(retry=Retry(attempts=3, wait=fixed(0.2)))
    payments.send(1, kind)
    payments.send(2, kind)
    payments.send(3)
    async with payments.run(handler) as run:
        await run.until(payments.has(3), "the third")
        await run.until(lambda: len(payments.published()) == 2, "the dead letters' topic")
    assert [(row["message_id"], row["reason"], row["attempts"]) for row in payments.dead()] == [
        ("p-1", reason, attempts),
        ("p-2", reason, attempts),
    ]
    sent = payments.broker.records(TOPIC)
    assert [(one.key, one.value) for one in payments.published()] == [(one.key, one.value) for one in sent[:2]]
    assert all(dict(one.headers)["consumerkit-dlq-attempts"] == b"%d" % attempts for one in payments.published())
    assert not payments.parked()
    payments.check()


class RawCommit(Trial):
    """Commits behind its session's back from its second attempt on."""

    async def handle(self, event: Payment, context: Context) -> None:
        await super().handle(event, context)
        if event.kind.startswith("fail"):
            await context.session.flush()
            connection = await (await context.session.connection()).get_raw_connection()
            assert connection.driver_connection is not None
            await connection.driver_connection.commit()


async def test_a_retry_that_commits_by_itself_is_not_run_again(payments: PaymentStage) -> None:
    payments.send(1, "fail:1")
    payments.send(2)
    async with payments.run(RawCommit()) as run:
        await run.until(payments.has(2), "the next one")
    # Its changes may be durable, in part or all: so it runs once and is dead.
    assert payments.effects().count("1") == 1
    assert [row["message_id"] for row in payments.dead()] == ["p-1"]
    assert not payments.parked()


class Paid(Payment):
    pass


class Typed(Trial):
    pass


def typed(**types: type[Payment]) -> Trial:
    return Typed(events=Events(by=header("type"), types=types, unknown="skip"))


async def test_a_parked_message_whose_type_is_not_declared_any_more_is_dead(payments: PaymentStage) -> None:
    payments.send(1, "forever", headers=(("type", b"paid"),))
    payments.send(2, headers=(("type", b"other"),))
    async with payments.run(typed(paid=Paid, other=Payment)) as run:
        await run.until(payments.holds(2), "the parking")
    async with payments.run(typed(other=Payment)) as run:
        await run.until(payments.has(2), "the next one")
    assert [(row["message_id"], row["reason"]) for row in payments.dead()] == [("p-1", "undecodable")]
    assert payments.outcome(1) == 3


# Deploys that change what the rows depend on.


@pytest.mark.parametrize("after", Ordering)
@pytest.mark.parametrize("before", Ordering)
async def test_changing_the_order_leaves_nothing_behind(
    payments: PaymentStage, before: Ordering, after: Ordering
) -> None:
    retry = Retry(attempts=20, wait=fixed(0.3))
    for number in range(24):
        payments.send(number, "forever" if number in (1, 2, 14) else "ok", key=b"%d" % (number % 3), partition=0)
    async with payments.run(Trial(ordering=before, retry=retry)) as run:
        parked = 1 if before is Ordering.PARTITION else 3
        await run.until(lambda: len(payments.parked()) >= parked, "the parking")
        if before is Ordering.KEY:
            await run.until(payments.has(0, 3, 21), "the healthy key")
    async with payments.run(Trial(ordering=after, retry=retry, healed=True)) as run:
        await run.until(lambda: len(payments.effects()) == 24, "all effects")
    assert not payments.parked()
    effects = [int(number) for number in payments.effects()]
    if before is after is Ordering.KEY:
        assert all([n for n in effects if n % 3 == key] == list(range(key, 24, 3)) for key in range(3))
    if before is after is Ordering.PARTITION:
        assert effects == list(range(24))
    payments.check()


@pytest.mark.parametrize("after", [Ordering.KEY, Ordering.NONE])
async def test_what_was_redriven_to_wait_for_its_partition_runs_where_that_has_no_order_any_more(
    payments: PaymentStage, after: Ordering
) -> None:
    for number, key in enumerate([b"a", b"b", None]):
        payments.send(number, "forever", key=key)
    async with payments.run(Trial(ordering=Ordering.PARTITION, retry=Retry(attempts=1))) as run:
        await run.until(lambda: len(payments.dead()) == 3, "the deaths")
    await redrive(payments.url, Selection())
    assert [row["due_at"] is None for row in payments.parked()] == [False, True, True]
    async with payments.run(Trial(ordering=after, healed=True)) as run:
        await run.until(payments.has(0, 1, 2), "what was redriven")
        payments.send(3, key=b"b")
        await run.until(payments.has(3), "a later one of a key that waited")
    assert (sorted(payments.effects()), payments.parked()) == (["0", "1", "2", "3"], [])


@pytest.mark.parametrize("after", [Ordering.KEY, Ordering.NONE])
async def test_what_waits_behind_one_that_the_brake_holds_goes_on_after_a_change_of_order(
    payments: PaymentStage, after: Ordering
) -> None:
    payments.send("bad-0", value=b"{", key=b"x")
    payments.send("bad-1", value=b"{", key=b"x")
    for number, key in enumerate([b"a", b"b", None]):
        payments.send(number, key=key)
    async with payments.run(Trial(ordering=Ordering.PARTITION, brake=Brake(allowance=1, probe=fixed(1)))) as run:
        await run.until(payments.holds(4, 1), "the parking")
    assert [row["due_at"] is None for row in payments.parked()] == [False, True, True, True]
    async with payments.run(Trial(ordering=after)) as run:
        await run.until(payments.has(0, 1, 2), "what waited")
        await run.until(payments.holds(0, 2), "the one that cannot be read")


async def test_a_topic_that_gains_partitions_keeps_what_is_parked(payments: PaymentStage) -> None:
    retry = Retry(attempts=9, wait=fixed(1))
    payments.send(1, "forever", partition=0)
    payments.send(2, partition=0)
    async with payments.run(Trial(retry=retry)) as run:
        await run.until(payments.holds(2), "the parking")
    payments.broker.add_partitions(TOPIC, 4)
    # The key's later messages may go to another partition, where nothing is known of what waits in the first.
    payments.send(3, partition=3)
    async with payments.run(Trial(retry=retry, healed=True)) as run:
        await run.until(payments.has(1, 2, 3), "all effects")
    assert [number for number in payments.effects() if number != "3"] == ["1", "2"]
    payments.check()


async def test_rows_of_a_handler_that_was_renamed_wait_for_it(payments: PaymentStage) -> None:
    payments.send(1, "forever")
    async with payments.run(Trial(retry=Retry(attempts=9, wait=fixed(0.1)))) as run:
        await run.until(payments.holds(1), "the parking")
    async with payments.run(Trial(name="renamed", group="other", healed=True)) as run:
        await run.until(payments.has(1), "the new name's own effect, since its ledger is its own")
        await asyncio.sleep(0.5)
        assert len(payments.parked()) == 1
    async with payments.run(Trial(healed=True)) as run:
        await run.until(payments.holds(0), "the old name's retry")
    assert payments.effects() == ["1", "1"]


async def test_rows_of_a_topic_that_is_no_longer_consumed_wait_and_are_told_of(
    payments: PaymentStage, caplog: pytest.LogCaptureFixture
) -> None:
    payments.broker.create_topic("u", 1)
    body = Payment(account="x", amount=1, kind="forever").model_dump_json().encode()
    payments.broker.append("u", body, key=b"k", headers=(("message-id", b"p-1"),), partition=0)
    async with payments.run(Trial(topic="u", retry=Retry(attempts=9, wait=fixed(0.1)))) as run:
        await run.until(payments.holds(1), "the parking")
    warning = (
        "credit: 1 message of topic 'u' is parked, and the handler no longer consumes it; it waits for a version that "
        "does, or until PayloadRetention(parked=...) makes dead letters of such messages"
    )
    assert warning not in caplog.messages
    async with payments.run(Trial(healed=True)) as run:
        run.worker.adopt(["credit"])
        payments.send(2)
        await run.until(payments.has(2), "a message of the other topic")
        await asyncio.sleep(0.5)
    assert caplog.messages.count(warning) == 1
    assert len(payments.parked()) == 1
    async with payments.run(Trial(topic="u", healed=True)) as run:
        run.worker.adopt(["credit"])
        await run.until(payments.has(1, 2), "its retry")
    assert not payments.parked()
    payments.check()


async def test_rows_of_a_handler_that_was_removed_wait_and_are_counted(payments: PaymentStage) -> None:
    payments.send(1, "forever")
    async with payments.run(Trial(retry=Retry(attempts=9, wait=fixed(0.1)))) as run:
        await run.until(payments.holds(1), "the parking")
    async with payments.run(Trial(name="another", group="another", healed=True)) as run:
        await run.until(payments.has(1), "what another handler makes of it")
        await asyncio.sleep(0.5)
    engine = create_engine(payments.url)
    with Session(engine) as session:
        counted = occupancy.count_by_handler(session, DEFAULT_TABLES)
    engine.dispose()
    assert [(name, parked, due, held) for name, parked, due, _, held in counted] == [("credit", 1, 1, 0)]


# Taking partitions over.


async def test_a_partition_that_goes_and_comes_while_it_is_waited_for_is_taken_all_the_same(
    payments: PaymentStage,
) -> None:
    lock = await asyncio.to_thread(hold_fence, payments, 0)
    try:
        payments.send(1, partition=0)
        payments.send(2, partition=1)
        async with payments.run(Trial()) as run:
            await run.until(payments.has(2), "the partition without a holder")
            for _ in range(8):
                await payments.broker.expire("credit")
                await asyncio.sleep(0.3)
            assert TopicPartition(TOPIC, 0) not in {event.partition for event in run.seen(PartitionTaken)}
            lock.close()
            await run.until(payments.has(1), "the partition that was held")
    finally:
        lock.close()


def hold_fence(payments: PaymentStage, partition: int) -> "psycopg.Connection[tuple[object, ...]]":
    """Hold a partition's fence as a zombie's open transaction does; closing the connection ends it."""
    connection = psycopg.connect(payments.postgres.dsn(payments.database))
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


async def test_fresh_messages_have_their_turn_however_much_is_due(payments: PaymentStage) -> None:
    handler = UntilGone(concurrency=1, batch_size=5)
    for number in range(24):
        payments.send(number, key=b"%d" % number)
    payments.send("go", "go", key=b"go")
    async with payments.run(handler) as run:
        await run.until(lambda: len(payments.effects()) == 25, "all effects")
    assert not payments.parked()
    payments.check()


async def test_a_key_with_much_behind_it_leaves_fresh_messages_their_turn(payments: PaymentStage) -> None:
    handler = Slow(retry=LONG, concurrency=1, batch_size=5, batch_time=0.05)
    for number in range(200):
        payments.send(number, "defer:3600:2" if number == 0 else "ok", key=b"long")
    async with payments.run(handler) as run:
        await run.until(lambda: len(payments.parked()) == 200, "the parking")
        payments.execute("UPDATE consumerkit_parked_messages SET due_at = now() WHERE message_id = 'p-0'")
        await run.until(lambda: len(payments.effects()) > 10, "some of what waited")
        payments.send("fresh", key=b"fresh")
        await run.until(lambda: len(payments.effects()) == 201, "all effects")
    effects = payments.effects()
    assert effects.index("fresh") < 190
    assert [n for n in effects if n != "fresh"] == [str(n) for n in range(200)]
    payments.check()


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


async def test_what_is_due_of_a_busy_lane_makes_no_other_lane_late(
    payments: PaymentStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (parked_poller, lane):
        monkeypatch.setattr(module, "MOST_DUE", 5)
    monkeypatch.setattr(parked_poller, "AT_ONCE", 5)
    handler = Gated(retry=Retry(attempts=5, wait=fixed(3600)), concurrency=2)
    keys = [b"%d" % number for number in range(200)]
    busy = [key for key in keys if hash(key) % 2 == 0][:22]
    [other, *_] = [key for key in keys if hash(key) % 2 == 1]
    for number, key in enumerate(busy):
        payments.send(number, "fail:1", key=key)
    payments.send("other", "fail:1", key=other)
    async with payments.run(handler, transaction_timeout=600.0) as run:
        await run.until(payments.holds(23), "the parking")
        # All due, the other lane's last.
        payments.execute(
            "UPDATE consumerkit_parked_messages SET due_at = now() - interval '1 hour' + id * interval '1 ms'"
        )
        await run.until(lambda: len(payments.effects()) == 23, "all effects")
    payments.check()
