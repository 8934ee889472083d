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
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from consumerkit import events
from consumerkit.engine import letters, placing
from consumerkit.engine.fences import Fences
from consumerkit.engine.first_runs import FirstRuns
from consumerkit.engine.partition import Partition, Partitions
from consumerkit.errors import PartitionUnusable, Unavailable
from consumerkit.event_wait import wait_until_set
from consumerkit.events import Announcer
from consumerkit.message import TopicPartition
from consumerkit.storage.progress import Lane, Standing
from consumerkit.transports.base import Consumer, PartitionInfo, Position

# A zombie's transactions end within their own limits; a shorter wait lets the other partitions have their turn.
FENCE_WAIT: Final = 2.0
LONGEST_WAIT: Final = 10.0
# How often a partition that cannot be used is looked at again: a person may have moved its mark.
STOPPED_FOR: Final = 5.0


class Asked(NamedTuple):
    """What the broker told, and when it was asked."""

    info: Mapping[TopicPartition, PartitionInfo]
    at: float


class Ownership:
    """Keeps an engine's partitions taken.

    Args:
        handler: The handler's name, for the announcements.
        consumer: Asked to commit an offset where ownership is in doubt.
        partitions: What is assigned.
        fences: The database.
        first_runs: Knows where a first run begins.
        announce: Told what happened.
        taken: Called when a partition is ours.
        given_up: Called when a partition cannot be used before a person acts.
        lanes: Returns the worker's lanes as they stand.
    """

    def __init__(
        self,
        handler: str,
        consumer: Consumer,
        partitions: Partitions,
        fences: Fences,
        first_runs: FirstRuns,
        announce: Announcer,
        taken: Callable[[Partition], None],
        given_up: Callable[[Partition], None],
        lanes: Callable[[], list[Lane]],
    ) -> None:
        self._handler = handler
        self._consumer = consumer
        self._partitions = partitions
        self._fences = fences
        self._first_runs = first_runs
        self._announce = announce
        self._taken = taken
        self._given_up = given_up
        self._lanes = lanes
        self._stopped: set[TopicPartition] = set()
        self._standings: dict[TopicPartition, Standing] = {}
        self._wanted: dict[TopicPartition, bool] = {}
        self._calmed: set[TopicPartition] = set()
        self._wake = asyncio.Event()
        self._failures = 0

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
        self._announce(events.PartitionInDoubt(handler=self._handler, partition=name, error=letters.described(error)))
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
        self._standings.pop(name, None)

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
        asked = await self._decided(await self._ask())
        failed = [name for name in list(asked.info) if not await self._tried(name, asked, wait=0.0)]
        failed += [name for name in self._wanted if name not in asked.info]
        waiting = [name for name in self._wanted if name not in failed]
        if waiting and not await self._tried(waiting[0], asked, wait=FENCE_WAIT):
            failed.append(waiting[0])
        failed += [name for name in list(self._calmed) if not await self._calm(name)]
        if failed:
            self._failures += 1
            await asyncio.sleep(min(LONGEST_WAIT, 0.1 * 2 ** min(self._failures, 10)) * random.uniform(0.75, 1.0))
        else:
            self._failures = 0

    async def _ask(self) -> Asked:
        """Ask the broker about all that is wanted; before the fences are taken, since it may be slow."""
        at = time.monotonic()
        for name in list(self._wanted):
            if (partition := self._partitions.get(name)) is None or partition.offsets.leaving:
                self._wanted.pop(name)
        if not self._wanted:
            return Asked({}, at)
        try:
            told = await self._consumer.describe(list(self._wanted))
        except Unavailable as error:
            self._trouble("broker", error)
            return Asked({}, at)
        # One partition without a leader keeps no other from being taken.
        if untold := [name for name in self._wanted if name not in told and self._partitions.get(name) is not None]:
            some = ", ".join(map(str, sorted(untold)[:5])) + (", ..." if len(untold) > 5 else "")
            self._trouble("broker", Unavailable(f"the broker does not tell about {some}: look for its leader"))
        return Asked(told, at)

    async def _decided(self, asked: Asked) -> Asked:
        """Have it decided where a first run begins, before anything is read; leave out what is not decided."""
        topics = {(name.topic, info.topic_id) for name, info in asked.info.items()}
        for topic in sorted(self._first_runs.unknown(topics)):
            try:
                await self._first_runs.learn(topic)
            except Unavailable as error:
                self._trouble("broker", error)
            except Exception as error:  # noqa: BLE001 - announced, and tried again
                self._trouble("database", error)
        unknown = self._first_runs.unknown(topics)
        known = {name: info for name, info in asked.info.items() if (name.topic, info.topic_id) not in unknown}
        return Asked(known, asked.at)

    async def _calm(self, name: TopicPartition) -> bool:
        partition = self._partitions.get(name)
        try:
            if partition is not None and partition.deaths:
                await self._fences.calm(partition)
        except Exception as error:  # noqa: BLE001 - announced, and tried again
            self._trouble("database", error)
            return False
        self._calmed.discard(name)
        return True

    async def _tried(self, name: TopicPartition, asked: Asked, *, wait: float) -> bool:
        """Try to take one partition; return False where that failed, which keeps no other from being tried."""
        try:
            await self._try(name, asked, wait=wait)
        except PartitionUnusable as error:
            return await self._unusable(name, error)
        except Unavailable as error:
            self._trouble("broker", error)
        except Exception as error:  # noqa: BLE001 - announced, and tried again
            self._trouble("database", error)
        else:
            return True
        return False

    def _trouble(self, where: str, error: Exception) -> None:
        described = letters.described(error)
        self._announce(events.Trouble(handler=self._handler, where=where, error=described, wait=0.1))

    async def _try(self, name: TopicPartition, asked: Asked, *, wait: float) -> None:
        partition, info = self._partitions.get(name), asked.info.get(name)
        if partition is None or partition.offsets.leaving:
            self._wanted.pop(name, None)
            return
        if info is None:
            return
        if self._wanted[name]:
            await self._confirm(partition)
        if self._partitions.get(name) is not partition:
            return

        first = await self._first_runs.find(name, info.topic_id)

        def place(standing: Standing) -> placing.Beginning:
            self._standings[name] = standing
            return placing.beginning(self._handler, name, standing, info, first)

        begins = await self._fences.take(
            partition,
            place,
            info,
            lambda: time.monotonic() - asked.at,
            self._lanes(),
            wait=wait,
        )
        if self._partitions.get(name) is not partition:
            # It went meanwhile, and may have come back, under another assignment: then it is wanted still.
            return
        if begins is None:
            # Another turn for the others before this one is waited for again.
            self._wanted[name] = self._wanted.pop(name)
            return
        self._wanted.pop(name, None)
        self._stopped.discard(name)
        self._begin(partition, begins)

    def _begin(self, partition: Partition, begins: placing.Beginning) -> None:
        """Go to the mark, unless what is in hand can be gone on with."""
        offsets = partition.offsets
        on_course = begins.intact or (offsets.position == begins.offset and offsets.untouched)
        if partition.adrift or not on_course:
            partition.restart(self._consumer.seek(partition.name, begins.offset))
        if begins.remark is not None:
            self._announce(
                events.PositionDiffers(
                    handler=self._handler,
                    partition=partition.name,
                    offset=begins.offset,
                    lost=begins.alarming,
                    remark=begins.remark,
                )
            )
        told = events.PartitionTaken(handler=self._handler, partition=partition.name, parked=partition.total)
        self._announce(told)
        self._taken(partition)

    async def _unusable(self, name: TopicPartition, error: PartitionUnusable) -> bool:
        """Stop a partition, unless the broker was asked too long ago; it is looked at again from time to time."""
        partition = self._partitions.get(name)
        try:
            fresh = (await self._consumer.describe([name])).get(name)
        except Unavailable as trouble:
            self._trouble("broker", trouble)
            return False
        if fresh is None or self._partitions.get(name) is not partition or partition is None:
            return False
        # Not by comparing the answers: under traffic no two are the same, as the log's end moves on.
        with suppress(PartitionUnusable):
            first = self._first_runs.known(name, fresh.topic_id)
            placing.beginning(self._handler, name, self._standings[name], fresh, first)
            return False
        self._wanted.pop(name, None)
        if name not in self._stopped:
            self._stopped.add(name)
            self._announce(events.PartitionStopped(handler=self._handler, partition=name, error=str(error)))
            partition.adrift = True
            self._given_up(partition)
        return True

    async def _confirm(self, partition: Partition) -> None:
        """Have Kafka accept an offset commit of this assignment, or raise `Unavailable`."""
        if partition.mark is not None and partition.name not in self._stopped:
            note = placing.note(self._handler, partition.start)
            await self._consumer.commit({partition.name: Position(partition.mark, partition.offsets.epoch, note)})
        if self._partitions.get(partition.name) is partition:
            self._wanted[partition.name] = False
