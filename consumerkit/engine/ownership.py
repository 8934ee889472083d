"""Takes partitions over: waits for the fence, writes the token, loads what is parked; and again when that is in doubt.

A worker that finds another's token may be a zombie, or the rightful owner whose predecessor came back. It takes the
partition back only after Kafka has accepted an offset commit of its assignment: else two owners would alternate for
ever. Where somebody else has owned it meanwhile, or the database has lost something, it forgets what it has in hand,
and reads again from the mark.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from consumerkit import events
from consumerkit.concurrency import wait_until_set
from consumerkit.engine import letters, placing
from consumerkit.engine.fence_waits import FenceWaits
from consumerkit.engine.fences import Fences
from consumerkit.engine.first_runs import FirstRuns
from consumerkit.engine.inquiry import Asked, Inquiry
from consumerkit.engine.partition import Partition, Partitions
from consumerkit.errors import PartitionUnusable, Unavailable
from consumerkit.events import Announcer
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Consumer

# A zombie's transactions end within their own limits; a shorter wait lets the other partitions have their turn.
FENCE_WAIT: Final = 2.0
LONGEST_WAIT: Final = 10.0
# So many are taken in one transaction. Meanwhile nobody else may begin with any of them, and what is parked is read.
AT_ONCE: Final = 100
# How often a partition that cannot be used is looked at again: a person may have moved its mark.
STOPPED_FOR: Final = 5.0


class Ownership:
    """Keeps an engine's partitions taken.

    Args:
        consumer: Asked to commit an offset where ownership is in doubt.
        partitions: What is assigned.
        fences: The database.
        first_runs: Knows where a first run begins.
        announce: Told what happened.
        taken: Called when a partition is ours.
        given_up: Called when a partition cannot be used before a person acts.
    """

    def __init__(
        self,
        consumer: Consumer,
        partitions: Partitions,
        fences: Fences,
        first_runs: FirstRuns,
        announce: Announcer,
        taken: Callable[[Partition], None],
        given_up: Callable[[Partition], None],
    ) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._fences = fences
        self._announce = announce
        self._inquiry = Inquiry(fences.handler, consumer, first_runs, self._trouble)
        self._taken = taken
        self._given_up = given_up
        self._waits = FenceWaits(announce)
        self._stopped: set[TopicPartition] = set()
        self._again: set[TopicPartition] = set()
        self._wanted: dict[TopicPartition, bool] = {}
        self._calmed: set[TopicPartition] = set()
        self._wake = asyncio.Event()
        self._failures = 0
        self._pause = 0.0

    def want(self, partition: Partition) -> None:
        """Have a partition taken that was just assigned."""
        self._wanted[partition.name] = False
        self._wake.set()

    def doubt(self, name: TopicPartition, token: bytes, error: Exception) -> None:
        """Have a partition taken anew, once Kafka has confirmed that it is ours; nothing if the token is an old one."""
        partition = self._partitions.get(name)
        if partition is None or partition.owner != token:
            return
        partition.owner = None
        self._announce(events.PartitionInDoubt(partition=name, error=letters.described(error)))
        self._wanted[name] = True
        self._wake.set()

    def doubt_all(self, error: Exception) -> None:
        """Have all partitions taken anew."""
        for partition in self._partitions:
            if partition.owner is not None:
                self.doubt(partition.name, partition.owner, error)

    def forget(self, name: TopicPartition) -> None:
        """Take note that a partition is not assigned any more."""
        self._wanted.pop(name, None)
        self._stopped.discard(name)
        self._waits.over(name)
        self._inquiry.forget(name)

    def calmed(self, partition: Partition) -> None:
        """Have it written down that a partition's owner got further than those that died before it."""
        self._calmed.add(partition.name)
        self._wake.set()

    async def run(self) -> None:
        """Take what is wanted, until cancelled."""
        while True:
            if not self._wanted and not self._calmed:
                self._wake.clear()
                await wait_until_set(self._wake, STOPPED_FOR if self._stopped else None)
            self._wanted |= {name: True for name in self._stopped if name not in self._wanted}
            await self._round()

    async def _round(self) -> None:
        """Try all partitions without waiting, then wait a little for the first that another worker still holds."""
        self._pause = min(LONGEST_WAIT, 0.1 * 2 ** min(self._failures + 1, 10)) * random.uniform(0.75, 1.0)
        asked = await self._inquiry.ask([name for name in list(self._wanted) if self._assigned(name) is not None])
        self._again.clear()
        failed = await self._try_all([name for name in self._wanted if name in asked.info], asked)
        failed += [name for name in self._wanted if name not in asked.info or name in self._again]
        waiting = [name for name in self._wanted if name not in failed]
        if waiting and not await self._tried(waiting[:1], asked, wait=FENCE_WAIT):
            failed.append(waiting[0])
        failed += [name for name in list(self._calmed) if not await self._calm(name)]
        if failed:
            self._failures += 1
            await asyncio.sleep(self._pause)
        else:
            self._failures = 0

    async def _try_all(self, names: list[TopicPartition], asked: Asked) -> list[TopicPartition]:
        """Try to take partitions, many at a time; return those for which that failed.

        Where many fail together, each half of them is tried, so that one alone keeps no other from being taken. A
        failure down to a single partition, with no success before, is the database's: the rest has its turn later.
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
        """Give the others their turn first, the next time."""
        if name in self._wanted:
            self._wanted[name] = self._wanted.pop(name)

    async def _calm(self, name: TopicPartition) -> bool:
        partition = self._partitions.get(name)
        try:
            if partition is not None and partition.deaths:
                await self._fences.calm(partition)
        except Exception as error:  # noqa: BLE001 - announced, and tried again
            self._trouble(error)
            return False
        self._calmed.discard(name)
        return True

    async def _tried(self, names: list[TopicPartition], asked: Asked, *, wait: float) -> bool:
        """Try to take partitions; return False where that failed, which keeps no other from being tried."""
        try:
            unusable = await self._try(names, asked, wait=wait)
        except Exception as error:  # noqa: BLE001 - announced, and tried again
            if len(names) == 1:  # of several it is not known yet which it is
                self._trouble(error)
            return False
        if unusable:
            await self._look_again(unusable)
        return True

    def _trouble(self, error: Exception) -> None:
        where, described = "broker" if isinstance(error, Unavailable) else "database", letters.described(error)
        self._announce(events.Trouble(where=where, error=described, wait=self._pause))

    async def _try(
        self, names: list[TopicPartition], asked: Asked, *, wait: float
    ) -> dict[TopicPartition, PartitionUnusable]:
        """Take partitions that are assigned still; return those that cannot be used."""
        partitions = {name: one for name in names if (one := self._assigned(name)) is not None}
        await self._confirm([one for name, one in partitions.items() if self._wanted.get(name)])
        wanted = [
            await self._inquiry.place(one, asked.info[name])
            for name, one in partitions.items()
            if self._partitions.get(name) is one
        ]
        if not wanted:
            return {}
        ago = partial(_since, asked.at)
        found = await self._fences.take(wanted, ago, wait=wait)
        unusable = {}
        for name, partition in partitions.items():
            begins = found.get(name)
            # One that went meanwhile may have come back, under another assignment: then it is wanted still.
            if self._partitions.get(name) is not partition:
                continue
            if isinstance(begins, PartitionUnusable):
                unusable[name] = begins
            elif begins is None:
                # Another turn for the others before this one is waited for again.
                self._put_last(name)
                self._waits.held(name)
            else:
                self._wanted.pop(name, None)
                self._waits.over(name)
                self._stopped.discard(name)
                self._begin(partition, begins)
        return unusable

    def _assigned(self, name: TopicPartition) -> Partition | None:
        """Return a partition that is to be taken, unless it is not assigned any more."""
        partition = self._partitions.get(name)
        if partition is None or partition.offsets.leaving:
            self._wanted.pop(name, None)
            return None
        return partition

    def _begin(self, partition: Partition, begins: placing.Beginning) -> None:
        """Go to the mark, unless what is in hand can be gone on with."""
        offsets = partition.offsets
        on_course = begins.intact or (offsets.position == begins.offset and offsets.untouched)
        if partition.adrift or not on_course:
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
        told = events.PartitionTaken(partition=partition.name, parked=partition.total)
        self._announce(told)
        self._taken(partition)

    async def _look_again(self, found: Mapping[TopicPartition, PartitionUnusable]) -> None:
        """Stop partitions, unless the broker was asked too long ago; they are looked at again from time to time."""
        before = {name: self._partitions.get(name) for name in found}
        try:
            unusable = await self._inquiry.unusable(list(found))
        except Unavailable as error:
            self._trouble(error)
            unusable = set()
        for name, why in found.items():
            if name in unusable and self._partitions.get(name) is before[name]:
                self._stop(name, why)
            else:
                self._again.add(name)

    def _stop(self, name: TopicPartition, error: PartitionUnusable) -> None:
        self._wanted.pop(name, None)
        partition = self._partitions.get(name)
        if name not in self._stopped and partition is not None:
            self._stopped.add(name)
            self._announce(events.PartitionStopped(partition=name, error=str(error)))
            partition.adrift = True
            self._given_up(partition)

    async def _confirm(self, partitions: Sequence[Partition]) -> None:
        """Have Kafka accept offset commits of these assignments, or raise `Unavailable`."""
        positions = {
            one.name: self._fences.position(one, one.mark)
            for one in partitions
            if one.mark is not None and one.name not in self._stopped
        }
        if positions:
            await self._consumer.commit(positions)
        for one in partitions:
            if self._partitions.get(one.name) is one and one.name in self._wanted:
                self._wanted[one.name] = False


def _since(moment: float) -> float:
    return time.monotonic() - moment
