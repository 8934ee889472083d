"""Events about partitions, their offsets and their fence."""

from __future__ import annotations

from dataclasses import dataclass

from consumerkit.events.event import Event
from consumerkit.message import TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionsAssigned(Event):
    """The broker has assigned partitions to this consumer."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionsRevoked(Event):
    """The broker revokes partitions; their running messages were finished or dropped.

    `dropped` messages are left for the next owner; `lost` tells that the partitions were gone
    before the worker knew.
    """

    partitions: tuple[TopicPartition, ...]
    dropped: int
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionsAwaited(Event):
    """A handler has had no partitions for `seconds`; announced after some seconds, and again every minute.

    It ends with `PartitionsAssigned`, which may name no partition: other members of the group then
    have them all.

    Attributes:
        seconds: How long it has had none. missed_after: Seconds after which the group removes a
            dead member; None where that is not known.
    """

    seconds: float
    missed_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStopped(Event):
    """A partition cannot be read further; a person must decide."""

    partition: TopicPartition
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStandsStill(Event):
    """A partition's mark has not moved for `seconds`, although its log grows; announced once until `PartitionMoves`.

    Attributes:
        partition: The partition. offset: Its mark: the offset of the first message without an
            outcome. end: The end of its log; None where the broker does not tell, since there is no
            leader. seconds: How long the mark has not moved. reason: The reason as far as it is
            known, and the way out.
    """

    partition: TopicPartition
    offset: int
    end: int | None
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionMoves(Event):
    """A partition that stood still moves again, is read to its end, or belongs to another worker."""

    partition: TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPaused(Event):
    """A partition is not fetched, because it cannot run; `PartitionResumed` or `PartitionsRevoked` ends this.

    A full parking lot is announced at once, and a wait in order behind a parked message after a minute.

    Attributes:
        partition: The partition. reason: What keeps it from running, and the way out.
    """

    partition: TopicPartition
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionResumed(Event):
    """A paused partition has run again for some seconds without a pause."""

    partition: TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionTaken(Event):
    """The database has recorded this worker as the partition's owner; `parked` of its messages wait there."""

    partition: TopicPartition
    parked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionDiffers(Event):
    """Kafka and the database disagree about where a partition stands; it is read from `offset`, the database's mark.

    `lost` tells that the database has lost transactions: messages whose effects are gone run again.
    """

    partition: TopicPartition
    offset: int
    lost: bool
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitsLost(Event):
    """The database has lost acknowledged transactions: all partitions go back to their marks."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionInDoubt(Event):
    """Another worker has taken a partition over, or may have: none of its messages runs until that is clear."""

    partition: TopicPartition
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceAwaited(Event):
    """A partition could not be taken over for `seconds`, since a transaction of its former owner is still open.

    Announced once; it ends with `PartitionTaken` or `PartitionsRevoked`.
    """

    partition: TopicPartition
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetsCommitted(Event):
    """The broker has stored these positions."""

    positions: tuple[tuple[TopicPartition, int], ...]
