"""Finds the messages parked behind another one that has left the lot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from sqlalchemy import Connection

from consumerkit.engine.partitions.partition import Partition, PartitionState
from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.engine.partitions.table import Partitions
from consumerkit.engine.transaction.sharing import Sharing
from consumerkit.handlers.handler import Ordering
from consumerkit.message import TopicPartition
from consumerkit.storage.parking.parked import ParkedMessage


class NextParked:
    """Finds the next parked messages of a key.

    Args:
        partitions: The assigned partitions.
        partition_store: The database.
        sharing: The handler's declarations, and whether its messages may share a transaction.
    """

    def __init__(self, partitions: Partitions, partition_store: PartitionStore, sharing: Sharing) -> None:
        self._ordering = sharing.declared.ordering
        self._limit = sharing.declared.batch_size
        self._sharing = sharing
        self._partitions = partitions
        self._partition_store = partition_store

    async def after(self, parked: ParkedMessage) -> list[ParkedMessage]:
        """Return the next messages after another one, as many as may share a transaction.

        Returns none if the database does not answer; the search for due messages finds them later.
        """
        message = parked.message
        name = TopicPartition(message.topic, message.partition)
        partition = self._partitions.get(name)
        if partition is None or not self._may_follow(partition, parked):
            return []
        any_key = self._ordering is Ordering.PARTITION
        limit = 1 if self._sharing.alone else self._limit

        def heads(connection: Connection) -> list[ParkedMessage]:
            return self._partition_store.lot.heads(connection, name, message.key, limit, any_key=any_key)

        try:
            found = await self._partition_store.run(heads)
        except Exception:  # noqa: BLE001 - promoted when its predecessor left, so it is found by its due time
            return []
        return _first(found, partition)

    def _may_follow(self, partition: Partition, parked: ParkedMessage) -> bool:
        """Tell whether messages may have waited behind one that has left the lot."""
        if partition.state is not PartitionState.OWNED or self._ordering is Ordering.NONE:
            return False
        if self._ordering is Ordering.KEY and parked.message.key is None:
            # It has no order: another one without a key may run in another lane, and would run twice.
            return False
        if parked.dead_letter is not None:
            return True
        if not partition.total:
            return False
        return self._ordering is Ordering.PARTITION or parked.message.key in partition.parked


def _first(found: Sequence[ParkedMessage], partition: Partition) -> list[ParkedMessage]:
    if not found or not found[0].due_or_waiting:
        return []
    # Messages that only waited behind another run together. One that failed before runs alone, and so does
    # one that may have killed an owner.
    following = list(takewhile(lambda one: _only_waited(one, partition), found)) or list(found[:1])
    for one in following:
        # A redriven message that waits behind another is not known yet.
        partition.park(one.message, one.id)
    return following


def _only_waited(parked: ParkedMessage, partition: Partition) -> bool:
    if parked.attempts or parked.deliveries or parked.id <= partition.crash_watermark:
        return False
    return parked.due_or_waiting
