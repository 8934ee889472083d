"""Waiting messages never block others: the budget is for partitions that may run; dropped messages are read again."""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import count
from typing import Any, get_args

import pytest

from consumerkit import DeadLetter, Ordering, Retry, fixed
from consumerkit.engine import holding
from consumerkit.engine.holding import Holding
from consumerkit.engine.partitions import pauses
from consumerkit.engine.partitions.budget import cost
from consumerkit.engine.partitions.offsets import OffsetTracker
from consumerkit.events import PartitionPaused, PartitionResumed
from consumerkit.message import Message, TopicPartition
from consumerkit.redrive import Selection, discard
from consumerkit.transports.aiokafka.consumer import AiokafkaConsumer
from consumerkit.transports.base import Position
from consumerkit.transports.confluent.consumer import ConfluentConsumer
from consumerkit.transports.kafka import Client
from consumerkit.transports.memory.group import MemoryConsumer
from tests.integration.kafka_stage import KafkaStage, payment
from tests.integration.payments import DEAD, TOPIC, PaymentStage, Trial
from tests.integration.stage import Run
from tests.services import PostgresServer
from tests.variants import further_cases

COUNT = 150
BUDGET = 48 * 1024
"""Far less than all that waits."""
FILLER = 500
FETCHED = 20
LANES = 4
EARLY = range(15, 18)
"""Messages with keys of their own, which are done before the lot is full."""
LATE = range(25, 30)
"""Messages of another lane, which run while messages of the others are dropped."""
AGAIN = Retry(attempts=999, wait=fixed(0.2))
MOST_AGAIN = BUDGET // (FILLER + 500) + FETCHED + len(EARLY) + len(LATE)
"""At most the budget and one more fetch are in memory; messages that are done or running are fetched besides."""
OTHERS = [f"other-{number}" for number in range(10)]


def key_of_lane(lane: int, name: str = "") -> bytes:
    """Return a key whose messages this lane runs; that depends on the hash seed."""
    return next(key for number in count() if hash(key := f"{name}{number}".encode()) % LANES == lane)


class Watch:
    """Counts what is fetched and dropped of partition 0, and looks at each commit."""

    def __init__(self, payments: PaymentStage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fetched = self.size = self.drops = self.looks = 0
        self.passed_over: list[set[int]] = []
        self._payments = payments
        fetch, commit, drop = MemoryConsumer.fetch, MemoryConsumer.commit, OffsetTracker.drop
        look = Holding.look

        async def fetching(consumer: MemoryConsumer, limit: int, timeout: float) -> list[Message]:
            found = await fetch(consumer, min(limit, FETCHED), timeout)
            of_it = [message for message in found if message.partition == 0]
            self.fetched += len(of_it)
            self.size += sum(map(cost, of_it))
            return found

        async def committing(consumer: MemoryConsumer, positions: Mapping[TopicPartition, Position]) -> None:
            if (position := positions.get(TopicPartition(TOPIC, 0))) is not None:
                missing = set(range(position.offset)) - await asyncio.to_thread(self._settled)
                self.passed_over += [missing] if missing else []
            await commit(consumer, positions)

        def dropping(tracker: OffsetTracker, offsets: Collection[int]) -> None:
            self.drops += 1
            drop(tracker, offsets)

        def looking(one: Holding, now: float) -> None:
            look(one, now)
            self.looks += 1

        monkeypatch.setattr(Holding, "look", looking)
        monkeypatch.setattr(MemoryConsumer, "fetch", fetching)
        monkeypatch.setattr(MemoryConsumer, "commit", committing)
        monkeypatch.setattr(OffsetTracker, "drop", dropping)

    def _settled(self) -> set[int]:
        """The offsets of partition 0 whose outcome is durable."""
        tables = "effects", "consumerkit_parked_messages", "consumerkit_dead_letters"
        offset = '"offset"'
        query = " UNION ALL ".join(f"SELECT {offset} AS o FROM {table} WHERE partition = 0" for table in tables)
        return {row["o"] for row in self._payments.rows(query)}

    @property
    def is_full(self) -> bool:
        """Whether as much was fetched as the budget allows."""
        return self.size >= BUDGET


class Gated(Trial):
    """Does not end its first message before the budget is full, nor what is behind it before that is parked."""

    def __init__(self, watch: Watch, **declared: Any) -> None:
        self.watch = watch
        self.again: list[str] = []
        self.is_parked = False
        declared.setdefault("concurrency", LANES)
        super().__init__(**declared)

    async def handle(self, event: Any, context: Any) -> None:
        looks = self.watch.looks + (2 if context.attempt > 1 else 0)
        # What has stopped its partition goes on after a look at that. What is counted has no event.
        while not self.may_end(context.message_id[2:]) or self.watch.looks < looks:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await super().handle(event, context)

    def may_end(self, number: str) -> bool:
        if number == "first":
            return self.watch.is_full
        return self.is_parked or (number.isdigit() and int(number) in EARLY)

    async def on_duplicate(self, event: Any, result: Any, context: Any) -> None:
        self.again.append(context.message_id)


@pytest.fixture
async def payments(postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch) -> PaymentStage:
    monkeypatch.setattr(pauses, "TOLD_AFTER", 0.0)
    monkeypatch.setattr(pauses, "OVER_AFTER", 0.0)
    # What is dropped and read again depends on no pace then.
    monkeypatch.setattr(holding, "LASTING", 0.0)
    monkeypatch.setattr(holding, "FRUGAL", 600.0)
    made = PaymentStage(postgres, database)
    await made.create_tables()
    return made


@pytest.fixture
def watch(payments: PaymentStage, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(payments, monkeypatch)


def limits(ordering: Ordering) -> dict[str, Any]:
    """Without an order in partitions it is the lot that stops one."""
    return {"ordering": ordering} | ({} if ordering is Ordering.PARTITION else {"parking_limit": 1})


def fill(payments: PaymentStage, *, first: str = "forever", stops: Collection[int] = ()) -> None:
    """Put more behind the first message of partition 0 than the budget allows; some of that fails once."""
    blocked, late = key_of_lane(0), key_of_lane(2)
    payments.send("first", first, key=key_of_lane(0, "first"))
    for number in range(COUNT):
        key = key_of_lane(1, f"{number}-") if number in EARLY else late if number in LATE else blocked
        kind = "fail:1" if number in stops else "ok"
        payments.send(number, kind, key=key, headers=(("filler", b"x" * FILLER),))


def send_others(payments: PaymentStage) -> None:
    for number in OTHERS:
        payments.send(number, partition=1)


def paused(run: Run) -> list[str]:
    return [one.what for one in run.worker.readiness().findings if f"{TOPIC}[0] is paused" in one.what]


def check(payments: PaymentStage, watch: Watch, ordering: Ordering) -> None:
    """All of partition 0 took effect once, in the order that is promised, and no commit passed what had no outcome."""
    assert not watch.passed_over
    took = [number for number in payments.effects() if number not in OTHERS]
    assert sorted(Counter(took).values()) == [1] * (COUNT + 1)
    if ordering is Ordering.PARTITION:
        assert took == ["first", *map(str, range(COUNT))]
    if ordering is Ordering.KEY:
        of_late = [int(number) for number in took if number != "first" and int(number) in LATE]
        of_blocked = [int(n) for n in took if n != "first" and int(n) not in {*LATE, *EARLY}]
        assert (of_late, of_blocked) == (sorted(of_late), sorted(of_blocked))
    payments.check()


@pytest.mark.parametrize("ordering", Ordering)
async def test_what_cannot_run_gives_up_its_room_and_is_read_again_once(
    payments: PaymentStage, watch: Watch, ordering: Ordering
) -> None:
    fill(payments, stops=[LATE[0]])
    handler = Gated(watch, retry=AGAIN, **limits(ordering))
    async with payments.run(handler, memory_budget=BUDGET) as run:
        await run.until(lambda: bool(run.seen(PartitionPaused)), "the first message is parked, and that is told")
        send_others(payments)
        if ordering is Ordering.KEY:  # of the others, all may be under way
            await run.until(lambda: bool(watch.drops), "room is made")
        handler.is_parked = True
        await run.until(payments.has(*OTHERS), "the other partition goes on")
        assert {one.partition.partition for one in run.seen(PartitionPaused)} == {0}
        assert len(paused(run)) == 1
        assert len(payments.effects()) < COUNT
        handler.healed = True
        await run.until(lambda: len(payments.effects()) == COUNT + 11, "all is processed")
        await run.until(lambda: payments.committed() == COUNT + 11, "and committed")
        await run.until(lambda: len(run.seen(PartitionResumed)) == len(run.seen(PartitionPaused)), "and told")
        assert not paused(run)
        assert not handler.again, "no event names what was read again"
        again = watch.fetched - (COUNT + 1)
        # In the other orders, what runs beside it may make room before anything must be dropped.
        assert again or ordering is Ordering.NONE
        assert again <= MOST_AGAIN, f"{again} messages were read again"
    check(payments, watch, ordering)


@pytest.mark.parametrize("ordering", [Ordering.KEY, *further_cases(Ordering.PARTITION, Ordering.NONE)])
async def test_what_is_dropped_again_and_again_is_read_from_the_first_that_is_missing(
    payments: PaymentStage, watch: Watch, monkeypatch: pytest.MonkeyPatch, ordering: Ordering
) -> None:
    monkeypatch.setattr(holding, "FRUGAL", 0.0)
    monkeypatch.setattr(holding, "LOOKED_EVERY", 0.0)
    monkeypatch.setattr(Holding, "_share", 5000)
    fill(payments, first="fail:1", stops=range(5, COUNT, 25))
    handler = Gated(watch, retry=AGAIN, **limits(ordering))
    handler.is_parked = True
    async with payments.run(handler, memory_budget=BUDGET) as run:
        await run.until(lambda: len(payments.effects()) == COUNT + 1, "all is processed")
        await run.until(lambda: payments.committed() == COUNT + 1, "and committed")
        # In the other orders, messages that stop it may do so together.
        assert watch.drops > (2 if ordering is Ordering.PARTITION else 0)
        assert not handler.again
    check(payments, watch, ordering)


async def test_a_partition_that_stops_again_and_again_is_not_read_again_each_time(
    payments: PaymentStage, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "LASTING", 600.0)  # as with retries of a second: only room for others makes it drop
    fill(payments, stops=range(5, COUNT, 25))
    handler = Gated(watch, ordering=Ordering.PARTITION, retry=AGAIN)
    handler.is_parked = True
    async with payments.run(handler, memory_budget=BUDGET) as run:
        await run.until(payments.holds(1), "the first message is parked")
        send_others(payments)
        await run.until(payments.has(*OTHERS), "the other partition goes on")
        handler.healed = True
        await run.until(lambda: len(payments.effects()) == COUNT + 11, "all is processed")
        again = watch.fetched - (COUNT + 1)
        assert again <= MOST_AGAIN, f"{again} messages were read again"
    check(payments, watch, Ordering.PARTITION)


async def test_what_was_dropped_is_read_by_who_has_the_partition_next(payments: PaymentStage, watch: Watch) -> None:
    fill(payments)
    handlers = [Gated(watch, retry=AGAIN, **limits(Ordering.KEY)) for _ in range(2)]
    for handler in handlers:
        handler.is_parked = True
    async with payments.run(handlers[0], memory_budget=BUDGET) as first:
        await first.until(lambda: bool(first.seen(PartitionPaused)), "the first message is parked")
        send_others(payments)
        await first.until(lambda: bool(watch.drops), "room is made")
        async with payments.run(handlers[1], memory_budget=BUDGET) as second:
            # The new owner of partition 0 has its parked messages, and does not know about dropped
            # ones.
            await second.until(
                lambda: len(first.seen(PartitionPaused)) + len(second.seen(PartitionPaused)) == 2, "it is paused again"
            )
            await second.until(payments.has(*OTHERS), "the other partition goes on")
            for handler in handlers:
                handler.healed = True
            await second.until(lambda: len(payments.effects()) == COUNT + 11, "all is processed")
            await second.until(lambda: payments.committed() == COUNT + 11, "and committed")
            assert sum(len(run.seen(PartitionResumed)) for run in (first, second)) >= 1
    check(payments, watch, Ordering.KEY)


async def test_dead_letters_that_hold_their_keys_fill_the_lot_and_stop_no_other_partition(
    payments: PaymentStage, watch: Watch
) -> None:
    fill(payments, first="reject")
    handler = Gated(watch, dead_letter=DeadLetter(DEAD, hold_key=True), **limits(Ordering.KEY))
    handler.is_parked = True
    async with payments.run(handler, memory_budget=BUDGET) as run:
        await run.until(lambda: bool(run.seen(PartitionPaused)), "the lot is full, and that is told")
        assert "consumerkit dead-letters list" in run.seen(PartitionPaused)[0].reason
        send_others(payments)
        await run.until(payments.has(*OTHERS), "the other partition goes on")
        assert len(paused(run)) == 1
        await discard(payments.url, Selection(), note="seen to")
        await run.until(lambda: len(payments.effects()) == COUNT + 10, "all the others are processed")
        await run.until(lambda: payments.committed() == COUNT + 11, "and committed")
    assert not watch.passed_over
    assert max(Counter(payments.effects()).values()) == 1


@pytest.mark.parametrize("transport", get_args(Client))
async def test_a_real_client_reads_again_from_the_first_that_was_dropped(
    stage: KafkaStage, monkeypatch: pytest.MonkeyPatch, transport: Client
) -> None:
    monkeypatch.setattr(pauses, "TOLD_AFTER", 0.0)
    monkeypatch.setattr(holding, "FRUGAL", 600.0)
    client: Any = {"confluent": ConfluentConsumer, "aiokafka": AiokafkaConsumer}[transport]
    fetch, drop, fetched, dropped = client.fetch, OffsetTracker.drop, Counter[int](), list[int]()
    budget, size = 16 * 1024, 0

    async def fetching(consumer: Any, limit: int, timeout: float) -> list[Message]:
        found: list[Message] = await fetch(consumer, min(limit, FETCHED), timeout)
        nonlocal size
        fetched.update(message.partition for message in found)
        size += sum(map(cost, found))
        return found

    class Waiting(Trial):
        async def handle(self, event: Any, context: Any) -> None:
            while size < budget:  # noqa: ASYNC110 - what is counted has no event
                await asyncio.sleep(0.01)
            await super().handle(event, context)

    def dropping(tracker: OffsetTracker, offsets: Collection[int]) -> None:
        dropped.append(len(offsets))
        drop(tracker, offsets)

    monkeypatch.setattr(client, "fetch", fetching)
    monkeypatch.setattr(OffsetTracker, "drop", dropping)
    filled = [payment(n, kind="fail:1" if n == 40 else "ok") for n in range(COUNT)]
    stage.send(
        [payment("first", kind="forever"), *(one._replace(headers=(("filler", b"x" * FILLER),)) for one in filled)]
    )
    handler = Waiting(topic=stage.topic, dead_letter=None, ordering=Ordering.PARTITION, retry=AGAIN)
    async with stage.run(handler, transport=transport, memory_budget=budget) as run:
        await run.until(lambda: bool(run.seen(PartitionPaused)), "the first message is parked")
        await run.until(lambda: bool(dropped), "room is made")
        stage.send([payment(number, partition=1) for number in OTHERS])
        await run.until(stage.finished(len(OTHERS)), "the other partition goes on")
        handler.healed = True
        await run.until(stage.finished(COUNT + 11), "all is processed")
        await run.until(lambda: stage.committed("credit") == {0: COUNT + 1, 1: len(OTHERS)}, "and committed")
        again = fetched[0] - (COUNT + 1)
        # Beside what was dropped, a fetch that was under way, and one that ran while the partition was held.
        assert again <= sum(dropped) + 2 * FETCHED, f"{again} messages were read again, and {dropped} were dropped"
    took = [row["message_id"] for row in stage.effects() if row["partition"] == 0]
    assert took == ["p-first", *(f"p-{number}" for number in range(COUNT))]
    stage.check_ledger()
