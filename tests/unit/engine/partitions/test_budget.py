"""The budget of bytes: a full one waits, a long full one pauses, and a half empty one continues."""

import asyncio
import time
from collections.abc import Collection, Mapping

import pytest

from consumerkit.engine.partitions import budget
from consumerkit.engine.partitions.budget import HEADER_OVERHEAD, OVERHEAD, Budget, cost
from consumerkit.message import Message, TopicPartition
from consumerkit.transports.base import AssignmentListener, Health, PartitionInfo, Position, Survey


class Switch:
    """A consumer that only remembers whether it is paused."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def start(self, listener: AssignmentListener) -> None: ...

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        return []

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None: ...

    async def pause(self) -> None:
        self.calls.append("pause")

    async def resume(self) -> None:
        self.calls.append("resume")

    async def hold(self, partitions: Collection[TopicPartition]) -> None: ...

    async def release(self, partitions: Collection[TopicPartition]) -> None: ...

    def seek(self, partition: TopicPartition, offset: int) -> int:
        return 0

    async def describe(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, PartitionInfo]:
        return {}

    def passed(self) -> dict[TopicPartition, Position]:
        return {}

    async def survey(self, topic: str) -> Survey:
        return Survey("", {})

    async def since(self, partition: TopicPartition, milliseconds: int) -> int:
        return 0

    async def stop(self) -> None: ...

    def health(self) -> Health:
        return Health(0.0, None)

    def member(self) -> str:
        return ""


def test_a_message_costs_its_bytes_and_its_object() -> None:
    assert cost(Message("t", 0, 0)) == OVERHEAD
    assert cost(Message("t", 0, 0, b"12", b"345", (("a", b"6"), ("b", None)))) == OVERHEAD + 8 + 2 * (
        24 + HEADER_OVERHEAD
    )


async def test_below_its_limit_there_is_room() -> None:
    made, consumer = Budget(100), Switch()
    assert await made.room(consumer)
    made.took(99)
    assert await made.room(consumer)
    assert consumer.calls == []


async def test_at_its_limit_there_is_none_until_something_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "PAUSE_AFTER", 3600.0)  # so that it is not this that ends the wait
    made, consumer = Budget(100), Switch()
    made.took(100)
    asyncio.get_running_loop().call_later(0.02, made.gave_back, 1)
    assert not await asyncio.wait_for(made.room(consumer), 120)
    assert await made.room(consumer)
    assert consumer.calls == []


async def test_a_budget_that_stays_full_pauses_and_one_half_empty_resumes() -> None:
    made, consumer = Budget(100), Switch()
    made.took(150)
    began = time.monotonic()
    while not await made.room(consumer):
        assert time.monotonic() - began < 60
    assert time.monotonic() - began > budget.PAUSE_AFTER
    assert consumer.calls == ["pause"]
    # While paused it is fetched from, or the consumer would leave its group.
    made.gave_back(99)
    assert await made.room(consumer)
    assert consumer.calls == ["pause"]
    made.gave_back(1)
    assert await made.room(consumer)
    assert consumer.calls == ["pause", "resume"]
    made.took(50)
    assert not await made.room(consumer)
    assert consumer.calls == ["pause", "resume"]
