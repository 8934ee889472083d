"""A lane's accounts with its engine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from consumerkit.engine.lane import Lane
from consumerkit.engine.partition import Partition
from consumerkit.errors import CommitsLost
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.fence import Owners
from consumerkit.storage.parked import ParkedMessage

if TYPE_CHECKING:
    from consumerkit.engine.loop import Engine


class LaneBooks:
    """What a lane's pipeline reports goes to its lane and its engine; see `consumerkit.engine.runner.Books`."""

    lane: Lane

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def finished(self, messages: Sequence[Message], published: bool) -> None:
        """See `Books.finished`."""
        self.lane.finished(messages)
        self._engine.finished(messages)
        if published:
            self._engine.outbox_written.set()

    def parked(self, message: Message, number: int) -> None:
        """See `Books.parked`."""
        partition = self._engine.partitions.get((message.topic, message.partition))
        if partition is not None:
            partition.park(message, number)
            self._engine.restore(partition)
            self._engine.due.wake()

    def unparked(self, message: Message, number: int) -> None:
        """See `Books.unparked`."""
        partition = self._engine.partitions.get((message.topic, message.partition))
        if partition is not None:
            partition.unpark(message, number)
            self._engine.restore(partition)

    def doubt(self, owners: Owners, error: Exception) -> None:
        """See `Books.doubt`."""
        for name, token in owners.items():
            self._engine.ownership.doubt(name, token, error)

    def commits_lost(self, error: CommitsLost) -> None:
        """See `Books.commits_lost`."""
        self._engine.commits_lost(error)

    async def suspect(self, partition: Partition) -> None:
        """See `Books.suspect`."""
        await self._engine.fences.suspect(partition)

    async def deliver(self, partition: Partition, parked: ParkedMessage, *, begins: bool) -> None:
        """See `Books.deliver`."""
        await self._engine.fences.deliver(partition, parked, begins=begins)

    def others_wait(self) -> bool:
        """See `Books.others_wait`."""
        return self.lane.has_more

    async def next_parked(self, parked: ParkedMessage) -> list[ParkedMessage]:
        """See `Books.next_parked`; where the database does not answer, the watch for what is due finds them later."""
        engine, message = self._engine, parked.message
        name = TopicPartition(message.topic, message.partition)
        partition = engine.partitions.get(name)
        if partition is None or partition.owner is None or partition.offsets.leaving:
            return []
        if not partition.total and parked.dead_letter is None:
            return []
        any_key = engine.declared.ordering is Ordering.PARTITION
        known = any_key or message.key in partition.parked or parked.dead_letter is not None
        if engine.declared.ordering is Ordering.NONE or not known:
            return []
        limit = engine.declared.batch_size

        def heads(connection: Connection) -> list[ParkedMessage]:
            return engine.fences.lot.heads(connection, name, message.key, limit, any_key=any_key)

        try:
            found = await engine.fences.run(heads)
        except Exception:  # noqa: BLE001 - promoted when its predecessor left, so it is found by its due time
            return []
        if not found or not found[0].due_or_waiting:
            return []
        # Together go those that only waited behind another; one that failed before is tried by itself, and so is one
        # that may have killed an owner.
        fresh = takewhile(lambda one: _only_waited(one, partition), found)
        following = list(fresh) or found[:1]
        for one in following:
            # What was redriven to wait behind another is not known yet.
            partition.park(one.message, one.id)
        return following


def _only_waited(parked: ParkedMessage, partition: Partition) -> bool:
    if parked.attempts or parked.deliveries or parked.id <= partition.haunted:
        return False
    return parked.due_or_waiting
