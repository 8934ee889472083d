"""What an engine does when the broker gives partitions or takes them away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, Final

from consumerkit.concurrency import wait_until_set
from consumerkit.engine.lanes.lane_choice import Lanes
from consumerkit.engine.partitions.committer import Committer
from consumerkit.engine.partitions.ownership import Ownership
from consumerkit.engine.partitions.table import Partitions
from consumerkit.errors import PartitionUnusable
from consumerkit.failpoints import reach
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Position

# Twice, for the marks and for giving back: together less than the five seconds that transports allow beyond the drain.
GIVE_BACK_TIMEOUT: Final = 2.0


class Rebalance:
    """Takes partitions on and gives them up; an engine's consumer has it as its `AssignmentListener`.

    Args:
        partitions: What is assigned.
        lanes: The engine's.
        ownership: Takes partitions over, and gives them back.
        committer: Keeps their positions.
        drain_timeout: Seconds in which a revoked partition's messages in hand are finished.
    """

    def __init__(
        self, partitions: Partitions, lanes: Lanes, ownership: Ownership, committer: Committer, drain_timeout: float
    ) -> None:
        self.drain_timeout = drain_timeout
        self._partitions = partitions
        self._lanes = lanes
        self._ownership = ownership
        self._committer = committer
        self._late: set[asyncio.Task[object]] = set()

    async def assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        """Begin with partitions: they are taken over in the background, and nothing of them begins before."""
        reach("in_on_assign")
        self._partitions.assigned(partitions)

    async def revoked(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """Finish the open transactions, drop the rest, and return the positions that may be committed."""
        reach("in_on_revoke")
        dropped = await self._drain(frozenset(partitions))
        # Where the mark is not written, the next owner finds some messages in the ledger.
        await self._in_time(self._committer.mark_last(partitions))
        positions = self._committer.positions(partitions)
        await self._give_back(partitions)
        self._forget(partitions, dropped, lost=False)
        return positions

    async def _give_back(self, partitions: Collection[TopicPartition]) -> None:
        """Leave word that these partitions were not left by a death, unless something of them is still under way."""
        if self._lanes.hold(frozenset(partitions)):
            return
        held = [partition for name in partitions if (partition := self._partitions.get(name)) is not None]
        # Without a database the next owner counts a death, which alone changes nothing.
        await self._in_time(self._ownership.give_back(held))

    async def _in_time(self, work: Coroutine[Any, Any, object]) -> None:
        """Have something written, or give it up; its end is not awaited then, for which a driver may take seconds.

        It may land all the same, at any time: like all that an owner writes, it bears the owner's token.
        """
        task = asyncio.ensure_future(work)
        self._late.add(task)
        task.add_done_callback(self._over)
        try:
            await asyncio.wait({task}, timeout=GIVE_BACK_TIMEOUT)
        finally:
            task.cancel()

    def _over(self, task: asyncio.Task[object]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio would log it; what failed here changes nothing

    async def settle(self, within: float) -> None:
        """Wait for what was given up and has not ended yet."""
        if self._late:
            await asyncio.wait(self._late, timeout=within)

    async def _drain(self, partitions: frozenset[TopicPartition]) -> int:
        # A lane whose transaction fails now has its messages back, and must not begin them again.
        for name in partitions:
            if (partition := self._partitions.get(name)) is not None:
                partition.leave()
        dropped = self._lanes.drop(partitions)
        until = time.monotonic() + self.drain_timeout
        while self._lanes.hold(partitions) and time.monotonic() < until:
            self._partitions.progressed.clear()
            dropped += self._lanes.drop(partitions)
            await wait_until_set(self._partitions.progressed, 0.05)
        return dropped

    async def lost(self, partitions: Collection[TopicPartition]) -> None:
        """Forget partitions that belong to somebody else; what is under way ends at the fence."""
        dropped = self._lanes.drop(frozenset(partitions))
        self._forget(partitions, dropped, lost=True)

    def _forget(self, partitions: Collection[TopicPartition], dropped: int, *, lost: bool) -> None:
        self._partitions.revoked(partitions, dropped, lost=lost)
        for name in partitions:
            self._ownership.forget(name)

    async def failed(self, partition: TopicPartition, error: PartitionUnusable) -> None:
        """Announce a partition that is not read any further."""
        self._partitions.unreadable(partition, error)
