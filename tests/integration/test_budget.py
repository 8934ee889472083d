"""What waits never holds what can run: the budget is for partitions that may run, and what is let go is read again."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from consumerkit import Ordering, Retry, fixed
from consumerkit.engine import due, holding
from consumerkit.events import PartitionPaused, PartitionResumed
from consumerkit.message import Message
from consumerkit.transports.memory_group import MemoryConsumer
from tests.integration.stage import Run
from tests.integration.yard import Trial, Yard
from tests.services import PostgresServer

COUNT = 300
BUDGET = 96 * 1024
"""Far less than all that waits."""
EARLY = range(25, 40)
"""Messages with keys of their own, which may be done before the lot is full."""


class Counted:
    """Counts what consumers fetch of each partition."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: Counter[int] = Counter()
        self.size: Counter[int] = Counter()
        fetch = MemoryConsumer.fetch

        async def counting(consumer: MemoryConsumer, limit: int, timeout: float) -> list[Message]:
            found = await fetch(consumer, min(limit, 20), timeout)
            for message in found:
                self.messages[message.partition] += 1
                self.size[message.partition] += message.size
            return found

        monkeypatch.setattr(MemoryConsumer, "fetch", counting)

    def is_full(self) -> bool:
        """Whether as much was fetched as the budget allows."""
        return self.size[0] + 500 * self.messages[0] >= BUDGET


class Gated(Trial):
    """Does not end its first message before the budget is full, nor what is behind it before that is parked."""

    counted: Counted

    def __init__(self, counted: Counted, **declared: Any) -> None:
        super().__init__(**declared)
        self.counted = counted
        self.again: list[str] = []
        self.is_parked = False

    async def handle(self, event: Any, context: Any) -> None:
        while not self.may_end(context.message_id):  # noqa: ASYNC110 - what is counted has no event
            await asyncio.sleep(0.01)
        await super().handle(event, context)

    def may_end(self, message_id: str) -> bool:
        if message_id == "p-first":
            return self.counted.is_full()
        return self.is_parked or message_id in {f"p-{number}" for number in EARLY}

    async def on_duplicate(self, event: Any, result: Any, context: Any) -> None:
        self.again.append(context.message_id)


@pytest.fixture
async def yard(postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch) -> Yard:
    monkeypatch.setattr(due, "LONGEST_SLEEP", 0.3)  # what is made due behind the worker's back is found soon
    made = Yard(postgres, database)
    await made.create_tables()
    return made


def fill(yard: Yard) -> None:
    """Put more behind the first message of partition 0 than the budget allows."""
    yard.send("first", "forever", key=b"first")
    for number in range(COUNT):
        key = b"%d" % number if number in EARLY else b"k"
        yard.send(number, key=key, headers=(("filler", b"x" * 500),))


def heal(yard: Yard, handler: Trial) -> None:
    handler.healed = True
    yard.execute("UPDATE consumerkit_parked_messages SET due_at = now()")


def paused(run: Run) -> list[str]:
    return [one.what for one in run.worker.readiness().findings if "is paused" in one.what]


@pytest.mark.parametrize("ordering", Ordering)
async def test_what_waits_behind_a_parked_message_gives_up_its_room(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, ordering: Ordering
) -> None:
    monkeypatch.setattr(holding, "TOLD_AFTER", 0.0)
    counted = Counted(monkeypatch)
    fill(yard)
    handler = Gated(
        counted,
        ordering=ordering,
        retry=Retry(attempts=99, wait=fixed(3600)),
        # Without an order in partitions it is the lot that stops one.
        **({} if ordering is Ordering.PARTITION else {"parking_limit": 1}),
    )
    async with yard.run(handler, memory_budget=BUDGET) as run:
        await run.until(lambda: bool(run.seen(PartitionPaused)), "the first message is parked, and that is told")
        handler.is_parked = True
        for number in range(10):
            yard.send(f"other-{number}", partition=1)
        await run.until(yard.has(*(f"other-{number}" for number in range(10))), "the other partition goes on")
        assert [one.partition.partition for one in run.seen(PartitionPaused)] == [0]
        assert paused(run), "and readiness knows"
        assert len(yard.effects()) < COUNT
        heal(yard, handler)
        await run.until(lambda: len(yard.effects()) >= COUNT + 11, "all is processed")
        await run.until(lambda: yard.committed() == COUNT + 11, "and committed")
        assert run.seen(PartitionResumed)
        assert not paused(run)
        took = [number for number in yard.effects() if not number.startswith("other")]
        assert max(Counter(took).values()) == 1
        if ordering is Ordering.PARTITION:
            assert took == ["first", *map(str, range(COUNT))]
        if ordering is Ordering.KEY:
            of_one_key = [int(number) for number in took if number != "first" and int(number) not in EARLY]
            assert of_one_key == sorted(of_one_key)
        assert not handler.again, "nobody is told of what was read again"
        # What was let go is fetched once more, and the room is never more than the budget and a fetch beyond it.
        again = counted.messages[0] - (COUNT + 1)
        assert again * 500 <= BUDGET + 20 * 1100, f"{again} messages were read again"
        assert again or ordering is not Ordering.PARTITION, "nothing was let go"
    yard.check()


async def test_a_partition_that_stops_every_second_is_not_read_again_and_again(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    fill(yard)
    for number in range(5):  # further messages of it stop it again and again
        yard.send(f"stop-{number}", "fail:2", headers=(("filler", b"x" * 500),))
    handler = Gated(counted, ordering=Ordering.PARTITION, retry=Retry(attempts=99, wait=fixed(0.3)))
    handler.is_parked = True
    async with yard.run(handler, memory_budget=BUDGET) as run:
        await run.until(yard.holds(1), "the first message is parked")
        for number in range(10):
            yard.send(f"other-{number}", partition=1)
        await run.until(yard.has(*(f"other-{number}" for number in range(10))), "the other partition goes on")
        assert len(handler.attempts("first")) > 1
        handler.healed = True
        await run.until(lambda: len(yard.effects()) >= COUNT + 16, "all is processed")
        again = counted.messages[0] - (COUNT + 6)
        assert again * 500 <= 2 * BUDGET, f"{again} messages were read again"
    yard.check()
