"""Notices partitions whose mark does not move while the log has more, whatever the reason.

Each part of an engine announces the obstacles that it knows. This part looks only at the result, so it also finds
obstacles that no other part expects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from consumerkit import events
from consumerkit.engine.lanes.brake_gate import BrakeGate
from consumerkit.engine.partitions.partition import Partition
from consumerkit.engine.partitions.pauses import BEHIND, full_lot
from consumerkit.events import Announcer
from consumerkit.handlers.handler import Ordering
from consumerkit.message import TopicPartition
from consumerkit.transports.base import PartitionInfo

STILL_AFTER: Final = 120.0
"""Seconds without a move after which a partition stands still; by default more than a transaction may take."""

_NOTHING: Final = (
    "no message of it is in hand or being fetched; other partitions' messages may fill memory_budget, or the broker "
    "sends nothing; if neither is so, restart the worker"
)

_SILENT: Final = "the broker answers for other partitions and not for this one; check its leader"

Why = Callable[[Partition], str]


class Standstill:
    """Compares the marks of an engine's partitions with the ends of their logs.

    Args:
        announce: Announces events.
        why: Returns the known reason and the remedy.
    """

    def __init__(self, announce: Announcer, why: Why) -> None:
        self._announce = announce
        self._why = why
        self._behind: dict[TopicPartition, tuple[int, float]] = {}
        self._told: set[TopicPartition] = set()

    def look(
        self, topic: str, partitions: Iterable[Partition], told: Mapping[TopicPartition, PartitionInfo], now: float
    ) -> None:
        """Compare a topic's assigned partitions with the broker's answer; `now` is of the monotonic clock.

        A partition that is missing from the answer has no leader. The caller does not call this without an answer.
        """
        assigned = {one.name: one for one in partitions if one.name.topic == topic}
        for name in [name for name in self._behind if name.topic == topic and name not in assigned]:
            self._moves(name)
        for name, partition in assigned.items():
            self._compare(partition, told.get(name), now)

    def _compare(self, partition: Partition, info: PartitionInfo | None, now: float) -> None:
        name = partition.name
        known = self._behind.get(name)
        offset = _mark(partition, info, known[0] if known is not None else 0)
        if info is not None and offset >= info.end:
            self._moves(name)
            return
        before, since = known or (offset, now)
        if offset != before:
            self._moves(name)
            since = now
        self._behind[name] = (offset, since)
        if now - since >= STILL_AFTER and name not in self._told:
            self._told.add(name)
            self._announce(
                events.PartitionStandsStill(
                    partition=name,
                    offset=offset,
                    end=None if info is None else info.end,
                    seconds=now - since,
                    reason=_SILENT if info is None else self._why(partition),
                )
            )

    def _moves(self, name: TopicPartition) -> None:
        self._behind.pop(name, None)
        if name in self._told:
            self._told.discard(name)
            self._announce(events.PartitionMoves(partition=name))


def why(gate: BrakeGate, partition: Partition) -> str:
    """Return the known reason why a partition stands still, and the remedy."""
    braking = gate.braking or gate.partitions.slows(partition.name)
    return reason(partition, partition.ordering, partition.parking_limit, braking=braking)


def reason(partition: Partition, ordering: Ordering, limit: int, *, braking: bool) -> str:
    """Return the known reason why a partition stands still, and the remedy."""
    in_hand, parked = partition.offsets.unfinished, partition.total
    known = {
        "it was stopped or lost its place; an earlier log line says why, and what to do": partition.must_reread,
        "no worker has taken it over; look for a worker that hangs while it holds the partition, or a database or "
        "broker that does not answer": partition.fencing_token is None,
        "the brake is on, for this partition or the whole handler; repair what the handler depends on, and it goes "
        "on by itself": braking,
        full_lot(parked): parked >= limit,
        BEHIND: bool(parked and ordering is Ordering.PARTITION),
        f"{in_hand} of its messages are in hand, and the first one is not finished; check what the handler waits for": (
            in_hand > 0
        ),
    }
    return next((words for words, holds in known.items() if holds), _NOTHING)


def _mark(partition: Partition, info: PartitionInfo | None, before: int) -> int:
    if partition.mark is not None:
        return partition.mark
    if info is None:
        return before
    return info.start if info.committed is None else info.committed
