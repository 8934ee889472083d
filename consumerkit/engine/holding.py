"""Holds partitions that cannot run, and drops their messages in hand where others need the room.

The memory budget is for messages that can run. Dropped messages are read again once the partition may run. A partition
that stops repeatedly is not read again each time. After a drop it keeps no more than its share in hand, so its next
stop drops nothing. The limit ends when it has run for a while without a stop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from consumerkit.engine.lanes.lane_choice import Lanes
from consumerkit.engine.lanes.partition_brakes import PartitionBrakes
from consumerkit.engine.partitions.budget import cost
from consumerkit.engine.partitions.partition import Partition, PartitionState
from consumerkit.engine.partitions.pauses import Pauses
from consumerkit.engine.partitions.table import Partitions
from consumerkit.events import Announcer
from consumerkit.message import Message
from consumerkit.transports.base import Consumer

LASTING: Final = 10.0
"""Seconds after which a partition that cannot run keeps only its share in hand, even if no other needs the room."""
FRUGAL: Final = 10.0
"""Seconds without a stop after which a partition that was read again may fill the budget again."""
LOOKED_EVERY: Final = 0.1
TAKEN_WITHIN: Final = 1.0
"""Seconds for which a partition is fetched before its takeover, which mostly takes less time than a hold."""


class Holding:
    """Decides which of an engine's partitions are fetched, and which messages stay in hand.

    Args:
        consumer: Holds and releases partitions, and reads them again.
        partitions: The assigned partitions.
        lanes: Hold the messages in hand.
        brakes: The brakes of single partitions.
        announce: Announces paused partitions.
    """

    def __init__(
        self,
        consumer: Consumer,
        partitions: Partitions,
        lanes: Lanes,
        brakes: PartitionBrakes,
        announce: Announcer,
    ) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._lanes = lanes
        self._brakes = brakes
        self._budget = partitions.budget
        self._pauses = Pauses(partitions, announce)
        # `_idle`: since when a partition cannot run. `_frugal`: until when a dropped one keeps only its share.
        self._idle: dict[Partition, float] = {}
        self._frugal: dict[Partition, float] = {}
        self._looked = 0.0
        self._calls: set[asyncio.Future[None]] = set()

    async def run(self) -> None:
        """Decide again on partitions that have changed, until cancelled."""
        while True:
            await self._partitions.settling_due.wait()
            for partition in self._partitions.take_changed():
                if partition.state is PartitionState.STOPPED:
                    self._lanes.drop(frozenset([partition.name]))
                self.settle(partition)

    def settle(self, partition: Partition) -> None:
        """Let the lanes go on with a partition that may run; stop the fetching of one that may not."""
        if partition.ready:
            for lane in self._lanes:
                lane.restore(partition.name)
        if self._may_run(partition):
            self._idle.pop(partition, None)
            held = self._has_its_share(partition)
            if not held:
                self._read_again(partition)
            self._hold(partition, held=held)
        else:
            self._rest(partition, time.monotonic())

    def _rest(self, partition: Partition, now: float) -> None:
        """Stop the fetching of a partition that cannot run."""
        since = self._idle.setdefault(partition, now)
        if partition in self._frugal:
            self._frugal[partition] = now + FRUGAL
        self._pauses.idle(partition, since, now)
        if partition.fencing_token is not None or partition.must_reread or now - since > TAKEN_WITHIN:
            self._hold(partition, held=True)

    async def fetched(self) -> None:
        """Hold partitions that now have their share, before more is fetched."""
        for partition in list(self._frugal):
            self.settle(partition)
        if self._calls:
            await asyncio.sleep(0)

    def look(self, now: float) -> None:
        """Make room where others need it, and announce paused partitions; `now` is of the monotonic clock."""
        if now - self._looked < LOOKED_EVERY:
            return
        self._looked = now
        self._forget_what_is_gone(now)
        others = False
        for partition in self._partitions:
            if not self._may_run(partition):
                self._rest(partition, now)
                continue
            others = True
            if partition.held or partition in self._idle or partition.offsets.reread_from is not None:
                self.settle(partition)
        for partition, since in list(self._idle.items()):
            if now - since >= LASTING or (others and self._budget.is_full):
                self._drop(partition, now)
        self._budget.idle = sum(partition.weight for partition in self._idle if partition.held)
        self._pauses.look(self._idle, now)

    def _forget_what_is_gone(self, now: float) -> None:
        for partition in [one for one in self._idle if self._is_gone(one)]:
            del self._idle[partition]
        for partition in [one for one, until in self._frugal.items() if until <= now or self._is_gone(one)]:
            del self._frugal[partition]

    def _is_gone(self, partition: Partition) -> bool:
        return self._partitions.get(partition.name) is not partition or partition.is_leaving

    def _may_run(self, partition: Partition) -> bool:
        return partition.ready and not self._is_slowed(partition)

    def _is_slowed(self, partition: Partition) -> bool:
        # Without a message in hand it is fetched again, for a message to probe with.
        return self._brakes.slows(partition.name) and partition.offsets.unfinished > 0

    @property
    def _share(self) -> int:
        """The bytes that a stopping partition may have in hand: its part of half the budget; the rest is for others."""
        return self._budget.limit // (2 * max(1, len(self._idle.keys() | self._frugal.keys())))

    def _has_its_share(self, partition: Partition) -> bool:
        if partition not in self._frugal:
            return False
        # A held one is fetched again at half its share, since each hold makes a client drop its read-ahead.
        return partition.weight > (self._share // 2 if partition.held else self._share)

    def _drop(self, partition: Partition, now: float) -> None:
        """Drop a partition's waiting messages beyond its share, from an offset on."""
        share = self._share
        if partition.weight <= share or partition.is_leaving or partition.must_reread:
            return
        waiting = sorted((m for lane in self._lanes for m in lane.in_hand(partition)), key=lambda one: one.offset)
        # A slowed partition needs a message to probe with; otherwise each probe would read it again.
        dropped = _beyond(waiting, share, at_least=1 if self._is_slowed(partition) else 0)
        if not dropped:
            return
        for lane in self._lanes:
            lane.drop_from(partition, dropped[0].offset)
        partition.offsets.drop([message.offset for message in dropped])
        given_back = sum(map(cost, dropped))
        partition.weight -= given_back
        self._budget.gave_back(given_back)
        self._frugal[partition] = now + FRUGAL
        # Messages fetched from now on are refused.
        self._hold(partition, held=True)

    def _read_again(self, partition: Partition) -> None:
        first = partition.offsets.reread_from
        # Such a partition is read again from its mark at its takeover.
        if first is not None and not partition.must_reread and not partition.is_leaving:
            partition.offsets.reread(self._consumer.seek(partition.name, first))

    def _hold(self, partition: Partition, *, held: bool) -> None:
        if partition.held is held:
            return
        partition.held = held
        task = asyncio.ensure_future((self._consumer.hold if held else self._consumer.release)([partition.name]))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)


def _beyond(waiting: Sequence[Message], share: int, *, at_least: int) -> Sequence[Message]:
    """Return the messages that do not fit into a share, in the order of their offsets."""
    kept, size = 0, 0
    for message in waiting:
        size += cost(message)
        if size > share and kept >= at_least:
            break
        kept += 1
    return waiting[kept:]
