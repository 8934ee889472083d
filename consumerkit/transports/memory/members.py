"""Consumer groups in memory: members, assignments and committed offsets, by the eager protocol.

Every change of membership takes all partitions from all members, waits until each has finished with
its own, and assigns them again. That is the harshest rebalance for a consumer, which suits a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Protocol

from consumerkit.message import TopicPartition
from consumerkit.transports.memory.log import Logs


class Member(Protocol):
    """What a group needs from a member.

    Attributes:
        name: The ID by which the group knows it.
        topics: The topics that it subscribes to.
        cut_off: Whether no answer of the broker reaches it, and the group has gone on without it.
        stopped: Whether it has left for good.
    """

    name: str
    topics: tuple[str, ...]
    cut_off: bool
    stopped: bool

    async def assign(self, partitions: Collection[TopicPartition]) -> None:
        """Take on partitions."""

    async def assign_led(self) -> None:
        """Take on earlier partitions that had no leader then and have one now."""

    async def revoke(self) -> None:
        """Finish with all partitions, commit, and give them up."""

    async def lose(self) -> None:
        """Give up all partitions without a commit."""

    def wake(self) -> None:
        """Make a waiting fetch check again; callable from any thread."""


class MemoryGroup:
    """One consumer group: its members and its committed offsets."""

    def __init__(self, logs: Logs) -> None:
        self.logs = logs
        self.offsets: dict[TopicPartition, int] = {}
        self.notes: dict[TopicPartition, str] = {}
        self._members: list[Member] = []
        self._changing = asyncio.Lock()

    @property
    def available(self) -> bool:
        """Whether the broker answers."""
        return self.logs.available

    @property
    def members(self) -> tuple[Member, ...]:
        """The members, oldest first."""
        return tuple(self._members)

    async def assign_led(self, member: Member) -> None:
        """Let a member take on its partitions that had no leader."""
        async with self._changing:
            if member in self._members:
                await member.assign_led()

    async def rebalance(self) -> None:
        """Take all partitions and assign them again, added ones included."""
        async with self._changing:
            await self._deal()

    async def remove(self, member: Member) -> None:
        """Treat a member as silent for too long: its partitions go to others, and it is not told."""
        async with self._changing:
            if member in self._members:
                self._members.remove(member)
                member.cut_off = True
                await self._deal()

    async def readmit(self, member: Member) -> None:
        """Tell a removed member that its partitions are lost, and let it join again, unless it has stopped."""
        async with self._changing:
            member.cut_off = False
            await member.lose()
            if not member.stopped:
                self._members.append(member)
                await self._deal()

    async def join(self, member: Member) -> None:
        """Let a member join and assign all partitions again."""
        async with self._changing:
            self._members.append(member)
            await self._deal()

    async def leave(self, member: Member) -> None:
        """Take the member's partitions once it has finished with them, and assign them again."""
        async with self._changing:
            if member in self._members:
                await member.revoke()
                self._members.remove(member)
                await self._deal()
            elif member.cut_off:
                await member.lose()

    async def expire(self) -> None:
        """Treat every member's session as expired: its partitions are lost, then it joins again."""
        async with self._changing:
            await asyncio.gather(*(member.lose() for member in self._members))
            await self._deal()

    def wake(self) -> None:
        """Make every waiting fetch check again; callable from any thread."""
        for member in self.members:
            member.wake()

    async def _deal(self) -> None:
        await asyncio.gather(*(member.revoke() for member in self._members))
        shares: list[set[TopicPartition]] = [set() for _ in self._members]
        topics = {topic for member in self._members for topic in member.topics}
        for turn, partition in enumerate(self.logs.partitions(topics)):
            takers = [at for at, member in enumerate(self._members) if partition.topic in member.topics]
            shares[takers[turn % len(takers)]].add(partition)
        await asyncio.gather(*(member.assign(share) for member, share in zip(self._members, shares, strict=True)))


def wake_all(groups: Iterable[MemoryGroup]) -> None:
    """Make every waiting fetch of every group check again."""
    for group in groups:
        group.wake()
