"""Holds partitions back that cannot run, and lets go of what is in hand of them where others need the room.

The budget is for what can run. What is let go is fetched again from its first message on, once the partition may run.
So that a partition that stops again and again is not read again and again, it has no more than its share in hand then,
until it has run for a while without a stop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from consumerkit import events
from consumerkit.engine.budget import Budget, cost
from consumerkit.engine.lane import Lane
from consumerkit.engine.partition import Partition, Partitions
from consumerkit.engine.partition_brakes import PartitionBrakes
from consumerkit.events import Announcer
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Consumer

LASTING: Final = 10.0
"""Seconds after which a partition that cannot run keeps no more than its share in hand, even if no other needs it."""
FRUGAL: Final = 10.0
"""Seconds without a stop after which a partition of which something was let go may fill the budget again."""
LOOKED_EVERY: Final = 0.1
TOLD_AFTER: Final = 60.0
"""Seconds after which it is told that a partition waits behind a parked message: most such waits are short."""


class Holding:
    """Decides which of an engine's partitions are fetched.

    Args:
        handler: The handler's name, for the announcements.
        consumer: Told what to hold, what to release, and where to read again.
        partitions: What is assigned.
        lanes: Have the messages in hand.
        brakes: Those of single partitions.
        budget: What may be in hand of all partitions.
        announce: Told of partitions that are paused.
    """

    def __init__(
        self,
        handler: str,
        consumer: Consumer,
        partitions: Partitions,
        lanes: Sequence[Lane],
        brakes: PartitionBrakes,
        budget: Budget,
        announce: Announcer,
    ) -> None:
        self._handler = handler
        self._consumer = consumer
        self._partitions = partitions
        self._lanes = lanes
        self._brakes = brakes
        self._budget = budget
        self._announce = announce
        self._idle: dict[Partition, float] = {}
        self._frugal: dict[Partition, float] = {}
        self._looked = 0.0
        self._told: set[TopicPartition] = set()
        self._calls: set[asyncio.Future[None]] = set()

    def settle(self, partition: Partition) -> None:
        """Let the lanes go on with a partition, if it is ready; else have nothing more fetched of it."""
        if partition.ready:
            for lane in self._lanes:
                lane.restore(partition.name)
        if self._may_run(partition):
            self._idle.pop(partition, None)
            self._resumed(partition.name)
            held = self._has_its_share(partition)
            if not held:
                self._read_again(partition)
        else:
            held = True
            now = time.monotonic()
            self._idle.setdefault(partition, now)
            self._stays_frugal(partition, now)
            self._tell_of_full_lot(partition)
        self._hold(partition, held)

    def fetched(self) -> None:
        """Take note that messages were fetched: some partitions may have their share now."""
        for partition in list(self._frugal):
            self.settle(partition)

    def look(self, now: float) -> None:
        """Make room where it is needed, and tell of what is paused; at a moment of the monotonic clock."""
        if now - self._looked < LOOKED_EVERY:
            return
        self._looked = now
        for partition in [one for one in self._idle if self._is_gone(one)]:
            del self._idle[partition]
            if self._partitions.get(partition.name) not in self._idle:
                self._resumed(partition.name)
        for partition in [one for one, until in self._frugal.items() if until <= now or self._is_gone(one)]:
            del self._frugal[partition]
        for partition in self._partitions:
            runs = self._may_run(partition)
            if runs is (partition in self._idle) or (runs and partition.held):
                self.settle(partition)
        for partition, since in list(self._idle.items()):
            self._stays_frugal(partition, now)
            if partition.waits_in_order and now - since >= TOLD_AFTER:
                self._pause_told(partition, _BEHIND)
            if now - since >= LASTING or (self._budget.is_full and len(self._idle) < len(self._partitions)):
                self._let_go(partition, now)

    def _stays_frugal(self, partition: Partition, now: float) -> None:
        if partition in self._frugal:
            self._frugal[partition] = now + FRUGAL

    def _may_run(self, partition: Partition) -> bool:
        # Of one that is slowed down more is fetched to probe with, once nothing of it is in hand.
        slowed = self._brakes.slows(partition.name) and partition.offsets.unfinished > 0
        return partition.ready and not slowed

    def _is_gone(self, partition: Partition) -> bool:
        return self._partitions.get(partition.name) is not partition or partition.offsets.leaving

    @property
    def _share(self) -> int:
        """What one partition may have in hand that cannot run: half of the budget is always for those that can."""
        return self._budget.limit // (2 * max(1, len(self._partitions)))

    def _has_its_share(self, partition: Partition) -> bool:
        if partition not in self._frugal:
            return False
        # More is fetched when half of it is used up, for a client gives up what it has read ahead with each hold.
        return partition.weight > (self._share // 2 if partition.held else self._share)

    def _let_go(self, partition: Partition, now: float) -> None:
        """Drop what is in hand of a partition beyond its share."""
        share = self._share
        if partition.weight <= share or partition.offsets.leaving or partition.adrift:
            return
        waiting = sorted((m for lane in self._lanes for m in lane.in_hand(partition)), key=lambda one: one.offset)
        kept, size = 0, 0
        while kept < len(waiting) and (not kept or size + cost(waiting[kept]) <= share):
            size += cost(waiting[kept])
            kept += 1
        dropped = waiting[kept:]
        if not dropped:
            return
        for lane in self._lanes:
            lane.let_go(partition, dropped[0].offset)
        partition.offsets.let_go([message.offset for message in dropped])
        given_back = sum(map(cost, dropped))
        partition.weight -= given_back
        self._frugal[partition] = now + FRUGAL
        self._budget.gave_back(given_back)

    def _read_again(self, partition: Partition) -> None:
        missing = partition.offsets.missing
        # What is adrift is read again from its mark, when it is taken over.
        if missing is not None and not partition.adrift and not partition.offsets.leaving:
            partition.offsets.read_again(self._consumer.seek(partition.name, missing))

    def _hold(self, partition: Partition, held: bool) -> None:
        if partition.held is held:
            return
        partition.held = held
        task = asyncio.ensure_future((self._consumer.hold if held else self._consumer.release)([partition.name]))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    # What is told.

    def _tell_of_full_lot(self, partition: Partition) -> None:
        if partition.owner is not None and partition.is_full:
            self._pause_told(
                partition,
                f"{partition.total} of its messages are parked, and parking_limit allows no more; repair what they "
                "fail at, or see consumerkit parked list",
            )

    def _pause_told(self, partition: Partition, reason: str) -> None:
        if partition.name not in self._told:
            self._told.add(partition.name)
            self._announce(events.PartitionPaused(handler=self._handler, partition=partition.name, reason=reason))

    def _resumed(self, name: TopicPartition) -> None:
        if name in self._told:
            self._told.discard(name)
            self._announce(events.PartitionResumed(handler=self._handler, partition=name))


_BEHIND: Final = (
    "it waits in order behind a parked message; repair what that fails at, or have it tried now: consumerkit parked "
    "retry-now"
)
