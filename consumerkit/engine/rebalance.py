"""Reacts when the broker assigns or revokes an engine's partitions."""

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

# Used twice, for the marks and for giving back: together less than the five seconds that transports allow after a
# drain.
RELEASE_TIMEOUT: Final = 2.0


class Rebalance:
    """Accepts and gives up partitions; it is the `AssignmentListener` of an engine's consumer.

    Args:
        partitions: The assigned partitions.
        lanes: The engine's lanes.
        ownership: Takes partitions over, and gives them back.
        committer: Writes their positions.
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
        """Accept partitions; they are taken over in the background, and nothing of them begins before that."""
        reach("in_on_assign")
        self._partitions.assigned(partitions)

    async def revoked(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """Finish the open transactions, drop all other messages, and return the positions to commit."""
        reach("in_on_revoke")
        dropped = await self._drain(frozenset(partitions))
        # If the mark is not written, the next owner finds some messages in the ledger.
        await self._in_time(self._committer.mark_last(partitions))
        positions = self._committer.positions(partitions)
        await self._release(partitions)
        self._forget(partitions, dropped, lost=False)
        return positions

    async def _release(self, partitions: Collection[TopicPartition]) -> None:
        """Record that no death ended the ownership, unless work of these partitions is still under way."""
        if self._lanes.hold(frozenset(partitions)):
            return
        held = [partition for name in partitions if (partition := self._partitions.get(name)) is not None]
        # Without the record, the next owner counts a death; one death alone changes nothing.
        await self._in_time(self._ownership.release(held))

    async def _in_time(self, work: Coroutine[Any, Any, object]) -> None:
        """Give a write limited time, then cancel it without waiting for its end, which may take a driver seconds.

        A cancelled write may still succeed later. That is safe, because it carries the owner's token.
        """
        task = asyncio.ensure_future(work)
        self._late.add(task)
        task.add_done_callback(self._over)
        try:
            await asyncio.wait({task}, timeout=RELEASE_TIMEOUT)
        finally:
            task.cancel()

    def _over(self, task: asyncio.Task[object]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio would log it; a failure here changes nothing

    async def settle(self, within: float) -> None:
        """Wait for cancelled writes that have not ended yet."""
        if self._late:
            await asyncio.wait(self._late, timeout=within)

    async def _drain(self, partitions: frozenset[TopicPartition]) -> int:
        # A lane whose transaction fails now gets its messages back, and must not begin them again.
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
        """Forget partitions that belong to another worker; work under way fails at the fence."""
        dropped = self._lanes.drop(frozenset(partitions))
        self._forget(partitions, dropped, lost=True)

    def _forget(self, partitions: Collection[TopicPartition], dropped: int, *, lost: bool) -> None:
        self._partitions.revoked(partitions, dropped, lost=lost)
        for name in partitions:
            self._ownership.forget(name)

    async def failed(self, partition: TopicPartition, error: PartitionUnusable) -> None:
        """Announce a partition that the consumer reads no further."""
        self._partitions.unreadable(partition, error)
