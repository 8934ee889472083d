"""Takes partitions over: waits for the fence, writes the token, loads parked messages; repeats that in doubt.

A worker that finds another's token may be a zombie, or the rightful owner whose predecessor came back. It takes the
partition back only after Kafka accepts an offset commit of its assignment; otherwise two owners would alternate for
ever. If another worker has owned the partition in between, or the database has lost something, the worker drops its
messages in hand and reads again from the mark.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from consumerkit import events
from consumerkit.concurrency import wait_until_set
from consumerkit.engine.partitions import start_position
from consumerkit.engine.partitions.fence_waits import FenceWaits
from consumerkit.engine.partitions.first_runs import FirstRuns
from consumerkit.engine.partitions.inquiry import Asked, Inquiry, Troubles
from consumerkit.engine.partitions.partition import Partition, PartitionState
from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.engine.partitions.table import Partitions
from consumerkit.errors import PartitionUnusable, Unavailable
from consumerkit.events import Announcer
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Consumer

# A zombie's transactions end within their own limits; a short wait gives the other partitions their turn.
FENCE_WAIT: Final = 2.0
LONGEST_WAIT: Final = 10.0
# The most partitions that one transaction takes. It also reads their parked messages, and no other worker may begin
# with any of them until it ends.
AT_ONCE: Final = 100
# Seconds until the next look at an unusable partition: a person may have moved its mark.
STOPPED_FOR: Final = 5.0


class Ownership:
    """Takes an engine's partitions over, and takes them again when that is needed.

    Args:
        consumer: Commits an offset where ownership is in doubt.
        partitions: The assigned partitions.
        partition_store: The database.
        first_runs: Knows where a first run begins.
        announce: Announces events.
    """

    def __init__(
        self,
        consumer: Consumer,
        partitions: Partitions,
        partition_store: PartitionStore,
        first_runs: FirstRuns,
        announce: Announcer,
    ) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._partition_store = partition_store
        self._announce = announce
        self._troubles = Troubles(announce)
        self._inquiry = Inquiry(partition_store.origin, consumer, first_runs, self._troubles)
        self._waits = FenceWaits(announce)
        self._again: set[TopicPartition] = set()
        # Stopped partitions that get another look.
        self._looking: set[Partition] = set()
        self._failures = 0

    def forget(self, name: TopicPartition) -> None:
        """Forget a partition that is no longer assigned."""
        self._waits.over(name)
        self._inquiry.forget(name)

    async def release(self, partitions: Sequence[Partition]) -> None:
        """Record in the database that nothing of these partitions is under way any more."""
        await self._partition_store.release(partitions)

    async def run(self) -> None:
        """Take wanted partitions until cancelled."""
        due, to_clear = self._partitions.ownership_due, self._partitions.to_clear
        while True:
            stopped = self._partitions.in_state(PartitionState.STOPPED)
            if not self._wanted() and not to_clear:
                due.clear()
                await wait_until_set(due, STOPPED_FOR if stopped else None)
            self._looking.update(self._partitions.in_state(PartitionState.STOPPED))
            await self._round()

    def _wanted(self) -> list[TopicPartition]:
        """Return the partitions to take over; those that waited longest for a turn come first."""
        found = self._partitions.in_state(PartitionState.ASSIGNED, PartitionState.IN_DOUBT, PartitionState.STOPPED)
        self._looking.intersection_update(found)
        return [one.name for one in found if one.state is not PartitionState.STOPPED or one in self._looking]

    async def _round(self) -> None:
        """Try all partitions without a wait, then wait briefly for the first that another worker still holds."""
        self._troubles.wait = min(LONGEST_WAIT, 0.1 * 2 ** min(self._failures + 1, 10)) * random.uniform(0.75, 1.0)
        asked = await self._inquiry.ask(self._wanted())
        self._again.clear()
        failed = await self._try_all([name for name in self._wanted() if name in asked.info], asked)
        wanted = self._wanted()
        failed += [name for name in wanted if name not in asked.info or name in self._again]
        waiting = [name for name in wanted if name not in failed]
        if waiting and not await self._tried(waiting[:1], asked, wait=FENCE_WAIT):
            failed.append(waiting[0])
        failed += [name for name in list(self._partitions.to_clear) if not await self._clear_crashes(name)]
        if failed:
            self._failures += 1
            await asyncio.sleep(self._troubles.wait)
        else:
            self._failures = 0
            self._troubles.over()

    async def _try_all(self, names: list[TopicPartition], asked: Asked) -> list[TopicPartition]:
        """Try to take partitions, many at a time; return those that failed.

        If many fail together, each half is tried, so one bad partition does not prevent the takeover of others. A
        failure down to a single partition, without an earlier success, is the database's: the rest is tried later.
        """
        failed: list[TopicPartition] = []
        todo = [names[at : at + AT_ONCE] for at in range(0, len(names), AT_ONCE)]
        succeeded = False
        while todo:
            some = todo.pop(0)
            if await self._tried(some, asked, wait=0.0):
                succeeded = True
            elif len(some) > 1:
                half = len(some) // 2
                todo[:0] = [some[:half], some[half:]]
            else:
                failed += some
                self._put_last(some[0])
                if not succeeded:
                    return failed + [name for rest in todo for name in rest]
        return failed

    def _put_last(self, name: TopicPartition) -> None:
        """Let the others go first next time."""
        if (partition := self._partitions.get(name)) is not None:
            self._partitions.put_last(partition)

    async def _clear_crashes(self, name: TopicPartition) -> bool:
        partition = self._partitions.get(name)
        try:
            if partition is not None and partition.crashes:
                await self._partition_store.clear_crashes(partition)
        except Exception as error:  # noqa: BLE001 - announced, and tried again
            self._troubles.tell(error)
            return False
        self._partitions.to_clear.discard(name)
        return True

    async def _tried(self, names: list[TopicPartition], asked: Asked, *, wait: float) -> bool:
        """Try to take partitions; return False if that failed, so that others are still tried."""
        try:
            unusable = await self._try(names, asked, wait=wait)
        except Exception as error:  # noqa: BLE001 - announced, and tried again
            if len(names) == 1:  # of several, the one at fault is unknown yet
                self._troubles.tell(error)
            return False
        if unusable:
            await self._look_again(unusable)
        return True

    async def _try(
        self, names: list[TopicPartition], asked: Asked, *, wait: float
    ) -> dict[TopicPartition, PartitionUnusable]:
        """Take partitions that are still assigned; return the unusable ones."""
        partitions = {name: one for name in names if (one := self._assigned(name)) is not None}
        await self._confirm([one for one in partitions.values() if one.state is PartitionState.IN_DOUBT])
        wanted = [
            await self._inquiry.place(one, asked.info[name])
            for name, one in partitions.items()
            if self._partitions.get(name) is one
        ]
        if not wanted:
            return {}
        ago = partial(_since, asked.at)
        found = await self._partition_store.acquire(wanted, ago, wait=wait)
        unusable = {}
        for name, partition in partitions.items():
            begins = found.get(name)
            # A partition may be gone and back under another assignment; that one is still wanted.
            if self._partitions.get(name) is not partition:
                continue
            if isinstance(begins, PartitionUnusable):
                unusable[name] = begins
            elif begins is None:
                # The others get a turn before the next wait for this one.
                self._put_last(name)
                self._waits.held(name)
            else:
                self._waits.over(name)
                self._begin(partition, begins)
        return unusable

    def _assigned(self, name: TopicPartition) -> Partition | None:
        """Return a partition to take; None if it is no longer assigned or is leaving."""
        partition = self._partitions.get(name)
        return None if partition is None or partition.is_leaving else partition

    def _begin(self, partition: Partition, begins: start_position.StartPosition) -> None:
        """Seek to the mark, unless the messages in hand are still valid."""
        offsets = partition.offsets
        on_course = begins.intact or (offsets.position == begins.offset and offsets.untouched)
        if partition.must_reread or not on_course:
            partition.restart(self._consumer.seek(partition.name, begins.offset))
        if begins.remark is not None:
            self._announce(
                events.PositionDiffers(
                    partition=partition.name,
                    offset=begins.offset,
                    lost=begins.alarming,
                    remark=begins.remark,
                )
            )
        self._partitions.taken(partition)

    async def _look_again(self, found: Mapping[TopicPartition, PartitionUnusable]) -> None:
        """Stop partitions that a new answer of the broker still finds unusable; try the others again."""
        before = {name: self._partitions.get(name) for name in found}
        try:
            unusable = await self._inquiry.unusable(list(found))
        except Unavailable as error:
            self._troubles.tell(error)
            unusable = set()
        for name, why in found.items():
            partition = self._partitions.get(name)
            if name in unusable and partition is not None and partition is before[name]:
                self._looking.discard(partition)
                self._partitions.stop(partition, why)
            else:
                self._again.add(name)

    async def _confirm(self, partitions: Sequence[Partition]) -> None:
        """Commit offsets of these assignments to Kafka, or raise `Unavailable`."""
        positions = {
            one.name: self._partition_store.position(one, one.mark) for one in partitions if one.mark is not None
        }
        if positions:
            await self._consumer.commit(positions)
        for one in partitions:
            one.confirm()


def _since(moment: float) -> float:
    return time.monotonic() - moment
