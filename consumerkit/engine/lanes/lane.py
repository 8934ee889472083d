"""A lane: messages that are handled one after another, one transaction at a time."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Final

from consumerkit.engine.lanes.backoff import Interrupted
from consumerkit.engine.lanes.exclusive import Exclusive
from consumerkit.engine.lanes.grouping import Grouping
from consumerkit.engine.lanes.next_parked import NextParked
from consumerkit.engine.lanes.parked_retry import ParkedRetry
from consumerkit.engine.partitions.partition import CAREFUL_SIZE, Partition
from consumerkit.engine.partitions.table import Partitions
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.parking.parked import ParkedMessage

MOST_DUE: Final = 100
"""The most due messages that wait in a lane; more stay in the database."""
DUE_IN_A_ROW: Final = 10
"""The most due messages that run in a row while fresh ones wait."""


_SLOWED_LOOK: Final = 1.0


class Lane:
    """Runs waiting messages; a batch takes those that are there and waits for no more.

    Due messages of the parking lot go first. Fresh messages have their turn after some of them, or after
    `batch_time`: due messages may never end, and may depend on fresh ones. Messages of a partition that is
    not ready are set aside, in order.

    Args:
        grouping: Runs fresh messages.
        retries: Runs parked messages.
        following: Finds the messages that waited behind a parked one.
        partitions: The assigned partitions.
        exclusive: Runs messages alone that may have killed the process.
    """

    def __init__(
        self,
        grouping: Grouping,
        retries: ParkedRetry,
        following: NextParked,
        partitions: Partitions,
        exclusive: Exclusive,
    ) -> None:
        self.grouping = grouping
        self.waiting: deque[Message] = deque()
        self._retries = retries
        self._following = following
        self._executor = grouping.executor
        self._gate = grouping.executor.gate
        self._interrupted = grouping.executor.backoff.interrupted
        self._partitions = partitions
        self._exclusive = exclusive
        self._aside: defaultdict[tuple[str, int], deque[Message]] = defaultdict(deque)
        self._due: deque[ParkedMessage] = deque()
        self._retrying: ParkedMessage | None = None
        self._slowed: set[TopicPartition] = set()
        self._wake = asyncio.Event()
        self._fresh_first = False
        self._due_in_a_row = 0
        self._due_since = 0.0
        self._stopping = False

    def put(self, message: Message) -> None:
        """Add a waiting message."""
        self.waiting.append(message)

    def put_due(self, parked: ParkedMessage) -> bool:
        """Add a parked message that is due, if there is room for it."""
        if len(self._due) >= MOST_DUE:
            return False
        self._due.append(parked)
        self._wake.set()
        return True

    @property
    def parked_in_hand(self) -> set[int]:
        """The numbers of the parked messages that wait or run here."""
        held = {parked.id for parked in self._due}
        return held if self._retrying is None else held | {self._retrying.id}

    @property
    def has_due(self) -> bool:
        """Whether parked messages that are due wait for their turn."""
        return bool(self._due)

    @property
    def _has_more(self) -> bool:
        """Whether anything else waits for its turn."""
        return bool(self._due or self.waiting)

    def wake(self) -> None:
        """Make the lane look for waiting messages."""
        self._wake.set()

    async def work(self) -> None:
        """Run waiting messages until `stop`."""
        while not self._stopping:
            if not self._due and not self.waiting:
                self._wake.clear()
                await self._wake.wait()
            elif await self._gate.enter(self, self._interrupted, self._executor):
                try:
                    await self._work_once()
                finally:
                    self._gate.leave(self)

    async def _work_once(self) -> None:
        if not self._stopping:
            # The interrupted work ended before it saw the interruption; no other work is given up in its place.
            self._interrupted.clear()
        # Due ones go first. But probes alternate with fresh messages, since good ones may be among these.
        self._fresh_first = self._gate.braking and bool(self.waiting) and not self._fresh_first
        if self._due and not self._fresh_first and not self._fresh_is_owed():
            self._due_since = self._due_since if self._due_in_a_row else time.monotonic()
            self._due_in_a_row += 1
            await self._retry(self._due.popleft())
        else:
            self._due_in_a_row = 0
            await self._turn(self._take(self.grouping.size()))

    def _fresh_is_owed(self) -> bool:
        """Whether fresh messages wait and enough due ones have run since their last turn."""
        if not self.waiting or not self._due_in_a_row:
            return False
        lasted = time.monotonic() - self._due_since
        return self._due_in_a_row >= DUE_IN_A_ROW or lasted > self.grouping.batch_time

    async def _retry(self, parked: ParkedMessage) -> None:
        self._retrying = parked
        try:
            partition = self._partitions.get((parked.message.topic, parked.message.partition))
            alone = parked.deliveries > 0 or (partition is not None and partition.isolated)
            async with self._exclusive.entered(alone=alone):
                await self._retry_key(parked)
        except Interrupted:
            self._interrupted.clear()
        finally:
            self._retrying = None
            self._partitions.tried()
        await asyncio.sleep(0)

    async def _retry_key(self, parked: ParkedMessage) -> None:
        """Retry a parked message, then those of its key that waited behind it, one after another."""
        rows, began = [parked], time.monotonic()
        while rows and await self._retries.retry(rows):
            if time.monotonic() - began > self.grouping.batch_time and self._has_more:
                # The others would be late. The last transaction made this key's next message due, behind them.
                return
            rows = await self._following.after(rows[-1])
            if rows and rows[0].deliveries:
                # The process died in an earlier run, so it must run alone: the poller hands it out again.
                return

    def _take(self, size: int) -> list[Message]:
        waiting, partitions = self.waiting, self._partitions
        taken: list[Message] = []
        stale: list[Message] = []
        while waiting and len(taken) < size:
            message = waiting.popleft()
            partition = partitions.of(message)
            if partition is None or partition.is_leaving:
                stale.append(message)
            elif partition.ready and (partition.name in self._aside or not self._gate.partitions.admits(message)):
                # Messages set aside earlier go first, even if this one would be admitted by now.
                self._set_aside(partition.name, message)
                self._look_again(partition.name, self._gate.partitions.wait(message))
            elif partition.ready and partition.isolated:
                # It runs alone, after the messages taken before it.
                (waiting.appendleft if taken else taken.append)(message)
                break
            elif partition.ready:
                if partition.crashes > 1:
                    size = min(size, CAREFUL_SIZE)
                taken.append(message)
            else:
                self._set_aside(partition.name, message)
        if stale:
            self._partitions.dropped(stale)
        return taken

    def _give_again(self, messages: Sequence[Message]) -> None:
        """Put messages back to the front after their transaction failed.

        They come before the messages of their partition that were set aside while they ran. They join those,
        because set-aside messages may return to the front at any moment.
        """
        for message in reversed(messages):
            name = TopicPartition(message.topic, message.partition)
            if name in self._aside:
                self._set_aside(name, message)
            else:
                self.waiting.appendleft(message)

    def _set_aside(self, partition: TopicPartition, message: Message) -> None:
        """Keep a message for later, in the order of the log."""
        aside = self._aside[partition]
        if aside and message.offset < aside[-1].offset:
            insort(aside, message, key=lambda one: one.offset)
        else:
            aside.append(message)

    def _look_again(self, partition: TopicPartition, seconds: float) -> None:
        """Look at a slowed partition again at its next probe, or sooner: its brake may go off before."""
        if partition not in self._slowed:
            self._slowed.add(partition)
            asyncio.get_running_loop().call_later(min(_SLOWED_LOOK, seconds), self._restore_slowed, partition)

    def _restore_slowed(self, partition: TopicPartition) -> None:
        self._slowed.discard(partition)
        found = self._partitions.get(partition)
        if found is not None and found.ready:
            self.restore(partition)

    def restore(self, partition: TopicPartition) -> None:
        """Put set-aside messages back to the front: the partition is ready again, or given back."""
        if aside := self._aside.pop(partition, None):
            self.waiting.extendleft(reversed(aside))
            self._wake.set()

    def in_hand(self, partition: Partition) -> list[Message]:
        """Return a partition's waiting messages; excludes those under way."""
        aside = self._aside.get(partition.name, ())
        return [message for message in (*aside, *self.waiting) if self._partitions.of(message) is partition]

    def drop_from(self, partition: Partition, first: int) -> None:
        """Drop a partition's waiting messages from an offset on; the caller accounts for them."""

        def stays(message: Message) -> bool:
            return message.offset < first or self._partitions.of(message) is not partition

        self.waiting = deque(filter(stays, self.waiting))
        if kept := deque(filter(stays, self._aside.pop(partition.name, ()))):
            self._aside[partition.name] = kept

    async def _turn(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        self._executor.begin(messages)
        first = self._partitions.of(messages[0])
        try:
            async with self._exclusive.entered(alone=first is not None and first.isolated):
                again = await self.grouping.run(messages)
        except Interrupted:
            self._interrupted.clear()
            self.grouping.forget_plan()
            again = self._executor.unfinished
        finally:
            self._executor.end()
        self._give_again(again)
        # Handlers may never really wait: other lanes and the fetching must go on.
        await asyncio.sleep(0)

    def holds(self, partitions: frozenset[TopicPartition]) -> bool:
        """Tell whether the work under way has messages of these partitions."""
        held = self._executor.unfinished
        if self._retrying is not None:
            held.append(self._retrying.message)
        return any((m.topic, m.partition) in partitions for m in held)

    def drop(self, partitions: frozenset[TopicPartition]) -> int:
        """Drop waiting messages of these partitions; return the number of fresh ones.

        Also ends a wait for the retry of one under way.
        """
        for partition in partitions:
            self.restore(partition)
        gone = [m for m in self.waiting if (m.topic, m.partition) in partitions]
        if gone:
            self.waiting = deque(m for m in self.waiting if (m.topic, m.partition) not in partitions)
            self._partitions.dropped(gone)
        for parked in [p for p in self._due if (p.message.topic, p.message.partition) in partitions]:
            self._due.remove(parked)
            self._partitions.tried()
        if self.holds(partitions):
            self._interrupted.set()
        return len(gone)

    def stop(self) -> None:
        """End the lane after the transaction under way."""
        self._stopping = True
        self._interrupted.set()
        self._wake.set()
