"""Tools of the contract's tests: a listener that records calls, and a member of a group that reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, NamedTuple

from consumerkit.errors import PartitionUnusable
from consumerkit.message import Message, TopicPartition
from consumerkit.transports.base import Consumer, Position

TIMEOUT = 120.0


async def until(condition: Callable[[], object], what: str, within: float = TIMEOUT) -> None:
    """Wait for a condition; fail with `what` was awaited."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within} s: {what}"
        await asyncio.sleep(0.02)


class Told(NamedTuple):
    """One call of the listener."""

    kind: str
    partitions: frozenset[TopicPartition]
    began: float
    ended: float


class Recorder:
    """An assignment listener that notes every call.

    Attributes:
        held: Epochs of the partitions that are assigned now.
        starts: Where each partition was read from at its last assignment.
        history: Every epoch each partition ever had here, in order.
        told: All calls, in order of their end.
        finished: Positions to return from `revoked`.
        raises: What `revoked` raises instead.
        drain: Seconds that `revoked` takes.
        before_leaving: Awaited within `revoked`.
        without: Whether it was told that the group has no partition for it, and of none since.
    """

    def __init__(self) -> None:
        self.held: dict[TopicPartition, int] = {}
        self.history: dict[TopicPartition, list[int]] = {}
        self.starts: dict[TopicPartition, int] = {}
        self.told: list[Told] = []
        self.finished: dict[TopicPartition, Position] = {}
        self.failures: dict[TopicPartition, PartitionUnusable] = {}
        self.raises: Exception | None = None
        self.drain = 0.0
        self.before_leaving: Callable[[], Awaitable[None]] | None = None
        self.wrong: list[str] = []
        self.without = False
        self._under_way: str | None = None

    async def assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        self.without = not partitions
        if self.without:
            return
        began = self._enter("assigned")
        for partition, (offset, epoch, _) in partitions.items():
            self.starts[partition] = offset
            self._check(partition not in self.held, f"{partition} was assigned twice")
            everything = [old for epochs in self.history.values() for old in epochs]
            self._check(all(epoch > old for old in self.history.get(partition, [])), f"epoch {epoch} in {everything}")
            self.held[partition] = epoch
            self.history.setdefault(partition, []).append(epoch)
        self._leave("assigned", partitions, began)

    async def revoked(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        began = self._enter("revoked")
        await asyncio.sleep(self.drain)
        if self.before_leaving is not None:
            await self.before_leaving()
        self._forget("revoked", partitions)
        self._leave("revoked", partitions, began)
        if self.raises is not None:
            raise self.raises
        return {partition: at for partition, at in self.finished.items() if partition in partitions}

    async def lost(self, partitions: Collection[TopicPartition]) -> None:
        began = self._enter("lost")
        self._forget("lost", partitions)
        self._leave("lost", partitions, began)

    async def failed(self, partition: TopicPartition, error: PartitionUnusable) -> None:
        began = self._enter("failed")
        self._check(isinstance(error, PartitionUnusable), f"failed with {error!r}")
        self.failures[partition] = error
        self._leave("failed", [partition], began)

    def calls(self, kind: str) -> list[Told]:
        return [call for call in self.told if call.kind == kind]

    def _enter(self, kind: str) -> float:
        self._check(self._under_way is None, f"{kind} was called during {self._under_way}")
        self._under_way = kind
        return time.monotonic()

    def _leave(self, kind: str, partitions: Collection[TopicPartition], began: float) -> None:
        self._under_way = None
        self.told.append(Told(kind, frozenset(partitions), began, time.monotonic()))

    def _forget(self, kind: str, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            self._check(partition in self.held, f"{kind} without assignment: {partition}")
            self.held.pop(partition, None)

    def _check(self, holds: bool, words: str) -> None:
        if not holds:
            self.wrong.append(words)


class Member:
    """A consumer that is polled all the time, as an engine does it; use as an async context manager.

    Attributes:
        seen: Every message that was fetched.
        passed: How far each partition was passed over last, under the assignment it had.
        consumer: The consumer, for what a test does besides reading.
        listener: Its notes.
    """

    def __init__(self, consumer: Consumer, *, finishes: bool = True) -> None:
        self.consumer = consumer
        self.listener = Recorder()
        self.seen: list[Message] = []
        self.errors: list[BaseException] = []
        self.passed: dict[TopicPartition, Position] = {}
        self._finishes = finishes
        self._over: set[int] = set()
        self._running = True
        self._pump: asyncio.Task[None] | None = None
        self._stopped = False

    async def __aenter__(self) -> Member:
        await self.consumer.start(self.listener)
        self._pump = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.stop()
        assert self.listener.wrong == []
        assert self.errors == []

    async def stop(self) -> None:
        """Stop reading, then stop the consumer; once."""
        self._running = False
        if self._pump is not None:
            await self._pump
            self._pump = None
        if not self._stopped:
            self._stopped = True
            await self.consumer.stop()

    async def quiet(self) -> None:
        """Stop reading, so that the test itself may fetch."""
        self._running = False
        if self._pump is not None:
            await self._pump
            self._pump = None

    async def holds(self, number: int) -> None:
        """Wait until exactly this many partitions are assigned."""
        await until(lambda: len(self.listener.held) == number, f"{number} partitions, not {self.listener.held}")

    async def reads(self, number: int, within: float = TIMEOUT) -> list[Message]:
        """Wait until at least this many messages were seen, and return all."""
        await until(lambda: len(self.seen) >= number, f"{number} messages, not {len(self.seen)}", within)
        return self.seen

    def goes_to(self, partition: TopicPartition, offset: int) -> int:
        """Read a partition from another offset; return the new epoch."""
        self._over.add(self.listener.held[partition])
        epoch = self.listener.held[partition] = self.consumer.seek(partition, offset)
        return epoch

    def finish(self, message: Message) -> None:
        """Count a message as finished: its position is returned when the partition is revoked."""
        partition = TopicPartition(message.topic, message.partition)
        self.listener.finished[partition] = Position(message.offset + 1, message.epoch)

    async def commit(self) -> None:
        """Commit all that is finished."""
        await self.consumer.commit(dict(self.listener.finished))

    async def _read(self) -> None:
        while self._running:
            try:
                messages = await self.consumer.fetch(500, 0.2)
            except Exception as error:  # the contract says that fetch survives; the test's end reports it
                self.errors.append(error)
                return
            held = dict(self.listener.held)
            for message in messages:
                self._receive(message, held)
            for partition, position in self.consumer.passed().items():
                if held.get(partition) == position.epoch:
                    self.passed[partition] = position

    def _receive(self, message: Message, held: Mapping[TopicPartition, int]) -> None:
        if message.epoch in self._over:
            return  # fetched before a seek
        partition = TopicPartition(message.topic, message.partition)
        if held.get(partition) != message.epoch:
            self.listener.wrong.append(f"{message} under epoch {message.epoch}, held {held.get(partition)}")
        self.seen.append(message)
        if self._finishes:
            self.finish(message)


def offsets(messages: list[Message], partition: int) -> list[int]:
    """The offsets of one partition's messages, as they came."""
    return [message.offset for message in messages if message.partition == partition]
