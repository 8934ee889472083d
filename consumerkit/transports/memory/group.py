"""A member of a consumer group in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Collection, Coroutine, Mapping
from typing import Any, TypeVar
from uuid import uuid4

from consumerkit.concurrency import wait_until_set
from consumerkit.errors import PartitionUnusable, StartError, Unavailable
from consumerkit.message import Message, TopicPartition
from consumerkit.transports.base import (
    AssignmentListener,
    Health,
    PartitionInfo,
    Position,
    Span,
    Subscription,
    Survey,
    Surveyed,
)
from consumerkit.transports.memory.log import TopicLog
from consumerkit.transports.memory.members import MemoryGroup

T = TypeVar("T")


class MemoryConsumer:
    """One member of a group in memory; see `consumerkit.transports.base.Consumer`.

    Attributes:
        name: The ID by which the group knows it.
        topics: The topics that it subscribes to.
        cut_off: Whether no answer of the broker reaches it, and the group has gone on without it.
        stopped: Whether it has left for good.
    """

    def __init__(self, group: MemoryGroup, subscription: Subscription) -> None:
        self.name = f"{subscription.client_id}-{uuid4()}"
        self.topics = subscription.topics
        self.cut_off = False
        self.stopped = False
        self._group = group
        self._subscription = subscription
        self._listener: AssignmentListener | None = None
        self._told = asyncio.Lock()
        self._awake = asyncio.Event()
        self._epoch = 0
        self._epochs: dict[TopicPartition, int] = {}
        self._reading: dict[TopicPartition, int] = {}
        self._paused = False
        self._held: set[TopicPartition] = set()
        self._leaderless: set[TopicPartition] = set()
        self._error: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, listener: AssignmentListener) -> None:
        """Join the group; partitions are assigned later."""
        missing = [topic for topic in self.topics if topic not in self._group.logs.topics]
        if missing:
            raise StartError(f"no such topic: {', '.join(missing)}")
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._spawn(self._group.join(self))

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        """Return available messages, at most `limit`; wait `timeout` seconds for the first."""
        end = time.monotonic() + timeout
        while True:
            self._awake.clear()
            self._find_leaders()
            found = [] if self._paused or not self._reachable else self._take(limit)
            remaining = end - time.monotonic()
            if found or remaining <= 0:
                return found
            if not await wait_until_set(self._awake, remaining):
                return []

    def passed(self) -> Mapping[TopicPartition, Position]:
        """Return where reading continues in each partition."""
        return self._positions({at: offset for at, offset in self._reading.items() if at not in self._held})

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Commit the positions whose epochs are still current."""
        self._reach()
        self._commit(positions)

    async def pause(self) -> None:
        """Deliver nothing until `resume`."""
        self._paused = True

    async def resume(self) -> None:
        """Deliver again."""
        self._paused = False
        self._awake.set()

    async def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver nothing of these partitions until `release`."""
        self._held |= self._epochs.keys() & set(partitions)

    async def release(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver these partitions again."""
        self._held -= set(partitions)
        self._awake.set()

    def seek(self, partition: TopicPartition, offset: int) -> int:
        """Read a partition from `offset` from now on; return the new epoch."""
        self._epoch += 1
        if partition in self._epochs:
            self._epochs[partition] = self._epoch
            self._reading[partition] = offset
            self._awake.set()
        return self._epoch

    async def describe(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, PartitionInfo]:
        """Describe assigned partitions.

        Raises:
            Unavailable: The broker is down.
        """
        self._reach()
        logs, offsets, notes = self._group.logs, self._group.offsets, self._group.notes
        found = {}
        for at in partitions:
            if at in self._epochs and logs.partition(at).has_leader:
                log, topic_id = logs.partition(at), logs.topics[at.topic].id
                found[at] = PartitionInfo(topic_id, log.start, log.end, offsets.get(at), notes.get(at, ""))
        return found

    async def survey(self, topic: str) -> Survey:
        """Describe all partitions of a topic.

        Raises:
            Unavailable: The broker is down, or there is no such topic.
        """
        log = self._topic(topic)
        offsets, notes, found = self._group.offsets, self._group.notes, {}
        for number, one in enumerate(log.partitions):
            at = TopicPartition(topic, number)
            span = Span(one.start, one.end) if one.has_leader else None
            found[number] = Surveyed(span, offsets.get(at), notes.get(at, ""))
        return Survey(log.id, found)

    async def since(self, partition: TopicPartition, milliseconds: int) -> int:
        """Return the first offset since a moment.

        Raises:
            Unavailable: The broker is down, there is no such topic, or the partition has no leader.
        """
        log = self._topic(partition.topic).partitions[partition.partition]
        if not log.has_leader:
            raise Unavailable(f"{partition} has no leader")
        later = (one.offset for one in log.read(log.start, log.end) if one.timestamp >= milliseconds)
        return next(later, log.end)

    async def stop(self) -> None:
        """Let the listener finish with all partitions, commit what it returns, and leave the group."""
        self.stopped = True
        # Cancelling the wait does not stop the leave: the broker finishes its assignment.
        leaving = asyncio.get_running_loop().create_task(self._group.leave(self))
        self._keep(leaving)
        await asyncio.shield(leaving)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def health(self) -> Health:
        """Return the consumer's health; callable from any thread."""
        # This client has no loop of its own that could stand still.
        return Health(0.0, self._error)

    def member(self) -> str:
        """Return the ID by which the group knows this consumer, once it has joined; callable from any thread."""
        return self.name if self in self._group.members else ""

    async def assign(self, partitions: Collection[TopicPartition]) -> None:
        """Pass new partitions to the listener, then read them; those without a leader, once they have one."""
        led = {partition for partition in partitions if self._group.logs.partition(partition).has_leader}
        self._leaderless |= set(partitions) - led
        starts = {partition: self._start(partition) for partition in sorted(led)}
        for partition in starts:
            self._epoch += 1
            self._epochs[partition] = self._epoch
        if starts or not partitions:
            told = self._positions(starts)
            if await self._tell(_true(self._listening.assigned(told)), otherwise=False):
                # A listener may have called `seek` already.
                self._reading.update({at: start for at, start in starts.items() if at not in self._reading})
                self._awake.set()
            else:
                for partition in starts:
                    self._epochs.pop(partition, None)
                    self._reading.pop(partition, None)

    async def assign_led(self) -> None:
        """Take on earlier partitions that had no leader then and have one now."""
        waiting, self._leaderless = self._leaderless, set()
        await self.assign(waiting)

    def _find_leaders(self) -> None:
        if any(self._group.logs.partition(partition).has_leader for partition in self._leaderless):
            self._spawn(self._group.assign_led(self))

    def _positions(self, starts: Mapping[TopicPartition, int]) -> dict[TopicPartition, Position]:
        return {partition: Position(offset, self._epochs[partition]) for partition, offset in starts.items()}

    async def revoke(self) -> None:
        """Let the listener finish with all partitions, commit what it returns, and give them up."""
        self._reading.clear()
        self._leaderless.clear()
        if not self._epochs:
            return
        within = self._subscription.drain_timeout + 1
        work = asyncio.wait_for(self._listening.revoked(tuple(self._epochs)), within)
        none: Mapping[TopicPartition, Position] = {}
        positions = await self._tell(work, otherwise=none)
        if self._group.available:
            self._commit(positions)
        self._epochs.clear()
        # The listener may have called `seek` in a partition while it finished with it.
        self._reading.clear()
        self._held.clear()

    async def lose(self) -> None:
        """Give up all partitions without a commit, and tell the listener."""
        gone = tuple(self._epochs)
        self._reading.clear()
        self._leaderless.clear()
        self._epochs.clear()
        self._held.clear()
        if gone:
            await self._tell(self._listening.lost(gone), otherwise=None)

    def wake(self) -> None:
        """Make a waiting fetch check again; callable from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._awake.set)

    @property
    def _reachable(self) -> bool:
        return self._group.available and not self.cut_off

    def _reach(self) -> None:
        if not self._reachable:
            raise Unavailable("the broker in memory is down")

    def _topic(self, name: str) -> TopicLog:
        self._reach()
        if name not in self._group.logs.topics:
            raise Unavailable(f"the broker in memory has no topic {name!r}")
        return self._group.logs.topics[name]

    @property
    def _listening(self) -> AssignmentListener:
        assert self._listener is not None, "the consumer has not been started"
        return self._listener

    def _take(self, limit: int) -> list[Message]:
        found: list[Message] = []
        for partition, offset in list(self._reading.items()):
            if partition in self._held:
                continue
            log = self._group.logs.partition(partition)
            if not log.has_leader:
                continue
            if not log.start <= offset <= log.end:
                self._fail(partition, offset)
                continue
            records = log.read(offset, limit - len(found))
            # Moved to the end of the queue, so that a busy partition does not starve the others.
            del self._reading[partition]
            self._reading[partition] = log.position_after(records, limit - len(found))
            if records:
                epoch = self._epochs[partition]
                found += [_under(record, epoch) for record in records]
            if len(found) >= limit:
                break
        return found

    def _commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        for partition, (offset, epoch, note) in positions.items():
            if self._epochs.get(partition) == epoch:
                self._group.offsets[partition] = offset
                self._group.notes[partition] = note

    def _start(self, partition: TopicPartition) -> int:
        log = self._group.logs.partition(partition)
        first = log.start if self._subscription.start_from == "earliest" else log.end
        return self._group.offsets.get(partition, first)

    def _fail(self, partition: TopicPartition, offset: int) -> None:
        log = self._group.logs.partition(partition)
        del self._reading[partition]
        error = PartitionUnusable(f"{partition}: offset {offset} is outside the log, {log.start} to {log.end}")
        # Not awaited here: the listener may be draining, and a fetch must return in time.
        self._spawn(self._tell(self._listening.failed(partition, error), otherwise=None))

    async def _tell(self, work: Awaitable[T], *, otherwise: T) -> T:
        """Call the listener, one call at a time; `health` reports its exception."""
        async with self._told:
            try:
                return await work
            except Exception as error:  # noqa: BLE001 - reported by health(), as the specification says
                self._error = f"the assignment listener raised {type(error).__name__}: {error}"
                return otherwise

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._keep(asyncio.get_running_loop().create_task(work))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _true(work: Awaitable[None]) -> bool:
    await work
    return True


def _under(record: Message, epoch: int) -> Message:
    return Message(
        record.topic,
        record.partition,
        record.offset,
        record.key,
        record.value,
        record.headers,
        record.timestamp,
        record.topic_id,
        epoch,
    )
