"""Consumer groups in memory: members, assignments and committed offsets, by the eager protocol.

Every change of membership takes all partitions from all members, waits until each has finished with its own, and
deals them out again. That is the harshest rebalance a consumer can meet, which is what a test wants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Protocol

from consumerkit.message import TopicPartition
from consumerkit.transports.memory.log import Logs


class Member(Protocol):
    """What a group needs of a member.

    Attributes:
        name: The ID by which the group knows it.
        topics: What it subscribes to.
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
        """Take on partitions that were given earlier and have a leader by now."""

    async def revoke(self) -> None:
        """Finish with all partitions, commit, and give them up."""

    async def lose(self) -> None:
        """Give up all partitions without a commit."""

    def wake(self) -> None:
        """Have a waiting fetch look again; from any thread."""


class MemoryGroup:
    """One consumer group: who its members are and what they have committed."""

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
        """Have a member take on what it was given without a leader."""
        async with self._changing:
            if member in self._members:
                await member.assign_led()

    async def rebalance(self) -> None:
        """Take all partitions and deal them out again, added ones among them."""
        async with self._changing:
            await self._deal()

    async def remove(self, member: Member) -> None:
        """Treat a member as one that was not heard of in time: its partitions go to others, and nothing tells it."""
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
        """Let a member in and deal out again."""
        async with self._changing:
            self._members.append(member)
            await self._deal()

    async def leave(self, member: Member) -> None:
        """Take the member's partitions, once it is done with them, and deal out again."""
        async with self._changing:
            if member in self._members:
                await member.revoke()
                self._members.remove(member)
                await self._deal()
            elif member.cut_off:
                await member.lose()

    async def expire(self) -> None:
        """Treat every member as one whose session ran out: its partitions are lost, then it joins again."""
        async with self._changing:
            await asyncio.gather(*(member.lose() for member in self._members))
            await self._deal()

    def wake(self) -> None:
        """Have every waiting fetch look again; from any thread."""
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
    """Have every waiting fetch of every group look again."""
    for group in groups:
        group.wake()
