"""Announces partitions that cannot run: their parking lot is full, or they wait in order behind a parked message."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from consumerkit import events
from consumerkit.engine.partitions.partition import Partition
from consumerkit.engine.partitions.table import Partitions
from consumerkit.events import Announcer

TOLD_AFTER: Final = 60.0
"""Seconds after which a wait behind a parked message is announced; most waits are shorter."""
OVER_AFTER: Final = 10.0
"""Seconds of running after which the end of a pause is announced; a lot may be full again at once."""


def full_lot(parked: int) -> str:
    """Return the text for a full parking lot, with the remedy."""
    return (
        f"{parked} of its messages are parked, and parking_limit allows no more; repair the cause of their failures: "
        "see `consumerkit parked list`, and for keys held by a dead letter `consumerkit dead-letters list`"
    )


BEHIND: Final = (
    "it waits in order behind a parked message; repair the cause of that failure, or retry the message now: see "
    "`consumerkit parked list` and `parked retry-now`, and for one held by a dead letter `consumerkit dead-letters "
    "list`"
)


class Pauses:
    """Announces each pause once, and its end.

    Args:
        partitions: The assigned partitions.
        announce: Announces events.
    """

    def __init__(self, partitions: Partitions, announce: Announcer) -> None:
        self._partitions = partitions
        self._announce = announce
        # When each was last seen paused.
        self._told: dict[Partition, float] = {}

    def idle(self, partition: Partition, since: float, now: float) -> None:
        """Announce a partition that cannot run, if its reason is known here and lasts."""
        if partition.fencing_token is None:
            return
        if partition.is_full:
            self._tell(partition, full_lot(partition.total), now)
        elif partition.waits_in_order and now - since >= TOLD_AFTER:
            self._tell(partition, BEHIND, now)

    def look(self, idle: Collection[Partition], now: float) -> None:
        """Announce ended pauses; forget the pause of a partition that was given back."""
        for partition, seen in list(self._told.items()):
            if self._partitions.get(partition.name) is not partition:
                del self._told[partition]
            elif partition in idle:
                self._told[partition] = now
            elif now - seen >= OVER_AFTER:
                del self._told[partition]
                self._announce(events.PartitionResumed(partition=partition.name))

    def _tell(self, partition: Partition, reason: str, now: float) -> None:
        if partition not in self._told:
            self._told[partition] = now
            self._announce(events.PartitionPaused(partition=partition.name, reason=reason))
