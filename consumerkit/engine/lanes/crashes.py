"""Records runs that may kill the process before they begin; gives up the messages that kill it."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from consumerkit.engine.lanes.backoff import Interrupted
from consumerkit.engine.lanes.executor import Executor
from consumerkit.engine.partitions.partition import Partition
from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.delivery import Decided, GiveUp, Handle
from consumerkit.errors import Fenced
from consumerkit.message import Message
from consumerkit.storage.parking.parked import ParkedMessage

POISON_AFTER: Final = 3
"""Crashes during runs alone after which a message is given up."""


class CrashRecord:
    """Records a lane's runs that the process may not survive.

    Args:
        executor: Knows the partitions, and waits while the database is in trouble.
        partition_store: The database.
    """

    def __init__(self, executor: Executor, partition_store: PartitionStore) -> None:
        self._executor = executor
        self._partition_store = partition_store

    async def suspect(self, decided: Decided) -> tuple[Decided, Partition | None]:
        """Record a run in an isolated partition before it begins; after three crashes, give the message up.

        Returns:
            The decision, and the partition with the record; None if no run was recorded.
        """
        message = decided.message
        partition = self._executor.partitions.of(message)
        if partition is None or not partition.isolated or not isinstance(decided.intent, Handle):
            return decided, None
        crashes = partition.suspect_offsets.get(message.offset, 0)
        if crashes >= POISON_AFTER:
            return Decided(decided.delivery, GiveUp(failures.poison(decided.delivery, crashes))), None
        partition.suspect_offsets[message.offset] = crashes + 1
        await self._executor.backoff.keep_trying(lambda: self._partition_store.suspect(partition))
        return decided, partition

    def survived(self, partition: Partition, message: Message) -> None:
        """Forget a recorded run. Only records that a crash leaves behind count against a message."""
        partition.suspect_offsets.pop(message.offset, None)

    def is_poison(self, parked: ParkedMessage) -> bool:
        """Tell whether a parked message has crashed the process too often."""
        # The first of these runs was not alone: no earlier crash had made the message suspicious.
        return parked.deliveries > POISON_AFTER

    def concerns(self, partition: Partition, parked: ParkedMessage) -> bool:
        """Tell whether to record runs of a parked message: after a first crash, as for a fresh one."""
        return bool(parked.deliveries) or parked.id <= partition.crash_watermark

    async def begin(self, partition: Partition, parked: ParkedMessage) -> None:
        """Record that a run of a parked message begins.

        Raises:
            Interrupted: The partition has another owner.
        """
        owner = partition.fencing_token or b""
        try:
            await self._executor.backoff.keep_trying(
                lambda: self._partition_store.deliver(partition, parked, begins=True), unless=(Fenced,)
            )
        except Fenced as error:
            self._executor.partitions.in_doubt({partition.name: owner}, error)
            raise Interrupted from error

    async def end(self, partition: Partition, parked: ParkedMessage) -> None:
        """Record that the process has survived a run; a failure to record it is harmless."""
        with suppress(Exception):
            await self._partition_store.deliver(partition, parked, begins=False)
