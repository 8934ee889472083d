"""What becomes of partitions, their offsets and their fence."""

from __future__ import annotations

from dataclasses import dataclass

from consumerkit.events.event import Event
from consumerkit.message import TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionsAssigned(Event):
    """The broker gave partitions to this consumer."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionsRevoked(Event):
    """The broker takes partitions away; what was in hand was finished or dropped.

    `dropped` messages were left for the next owner; `lost` tells that the partitions had gone before we knew.
    """

    partitions: tuple[TopicPartition, ...]
    dropped: int
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionsAwaited(Event):
    """A handler has had no partitions for `seconds`; announced after some seconds, and again every minute.

    It ends with `PartitionsAssigned`, which may name none: then other members of the group have them all.

    Attributes:
        seconds: For how long.
        missed_after: Seconds after which the group misses a member that has died; None where that is not known.
    """

    seconds: float
    missed_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStopped(Event):
    """A partition cannot be read any further; a person must decide."""

    partition: TopicPartition
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStandsStill(Event):
    """A partition's mark has not moved for `seconds`, although its log grows; announced once, until `PartitionMoves`.

    Attributes:
        partition: Which.
        offset: Its mark: the first message without an outcome.
        end: The end of its log; None where the broker does not tell, for want of a leader.
        seconds: For how long.
        reason: What is known of the reason, and the way out.
    """

    partition: TopicPartition
    offset: int
    end: int | None
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionMoves(Event):
    """A partition that stood still moves again, is read to its end, or is another worker's."""

    partition: TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPaused(Event):
    """A partition is not fetched, because it cannot run; it ends with `PartitionResumed` or `PartitionsRevoked`.

    A full parking lot is announced at once, and a wait in order behind a parked message after a minute.

    Attributes:
        partition: Which.
        reason: What keeps it from running, and the way out.
    """

    partition: TopicPartition
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionResumed(Event):
    """A partition that was paused has run for some seconds without a pause."""

    partition: TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionTaken(Event):
    """The database knows this worker as the partition's owner; `parked` messages wait there."""

    partition: TopicPartition
    parked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionDiffers(Event):
    """Kafka and the database disagree about where a partition stands; it is read from `offset`, the database's mark.

    `lost` tells that the database has lost something, so that messages are run again whose effects are gone.
    """

    partition: TopicPartition
    offset: int
    lost: bool
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitsLost(Event):
    """The database has lost transactions that it had acknowledged: all partitions go back to their marks."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionInDoubt(Event):
    """Another worker has taken a partition over, or may have: nothing of it begins until that is clear."""

    partition: TopicPartition
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceAwaited(Event):
    """A partition cannot be taken over for `seconds` now, since a transaction of its owner before is still open.

    Announced once; it ends with `PartitionTaken` or `PartitionsRevoked`.
    """

    partition: TopicPartition
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetsCommitted(Event):
    """The broker has these positions."""

    positions: tuple[tuple[TopicPartition, int], ...]
