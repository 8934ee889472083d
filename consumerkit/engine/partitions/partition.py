"""A partition as an engine knows it: its offsets, its fence and its parked messages."""

from __future__ import annotations

import time
from enum import Enum
from typing import Final

from consumerkit.engine.partitions.budget import cost
from consumerkit.engine.partitions.offsets import OffsetTracker
from consumerkit.engine.partitions.start_position import StartPosition
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.fence import Taken
from consumerkit.transports.base import Position

# Two would not be enough: see docs/decisions/0014.
ISOLATED_AFTER: Final = 4
# After a second death, batches are small until one is committed, so that a later isolation begins near the culprit.
# If isolation ends before it reaches the culprit, the next deaths begin another isolation, closer to the culprit.
CAREFUL_SIZE: Final = 100
ISOLATED_FOR: Final = 100


class PartitionState(Enum):
    """Where a partition stands between the broker and the database."""

    ASSIGNED = "assigned"
    """The broker assigned it; its takeover in the database is due."""
    OWNED = "owned"
    """It is taken over: its messages run."""
    IN_DOUBT = "in doubt"
    """It may have another owner: it is taken over after Kafka accepts one of our offset commits."""
    STOPPED = "stopped"
    """It is unusable until a person acts; it is checked again from time to time."""
    LEAVING = "leaving"
    """It is being given back: work under way may finish, and nothing more begins."""


class Partition:
    """One partition under one assignment.

    Attributes:
        name: Topic and number.
        state: See `PartitionState`.
        offsets: The messages in hand, and the assignment's epoch.
        fencing_token: The token by which the database knows us as the owner; None if it does not or if that is in
            doubt. Without the token nothing of the partition begins.
        parked: The numbers of the parked messages, by key.
        total: How many messages are parked.
        crashes, suspect_offsets: See `consumerkit.storage.fence.Taken`.
        crash_watermark: The highest number in the lot when the partition was taken over from an owner that died. One
            of the messages up to it may have killed that owner, so their runs are recorded before they begin.
        held: Whether the consumer fetches nothing more of it.
        weight: Bytes that its messages in hand count for in the budget.
        first_new: The lowest offset whose outcome this owner was the first to record. Messages that an owner only finds
            processed do not count, since every owner that begins at the same mark finds them.
        mark: The position that the database has; None before the takeover.
        start: Where the consumer's first run began.
        end: No earlier owner has processed anything at or above this offset.
        forgotten_below: The ledger may have forgotten the IDs of messages below this offset; they cannot be proven new.
        must_reread: Whether messages were dropped; the partition must then be read again from the mark.
        topic_id: The topic's ID when it was taken over.
        ordering, parking_limit: What the handler declares.
        taken_at: When it was taken over, by the monotonic clock.
        turn: Orders the takeovers; partitions with a lower number are next.
    """

    __slots__ = (
        "crash_watermark",
        "crashes",
        "end",
        "fencing_token",
        "first_new",
        "forgotten_below",
        "held",
        "mark",
        "must_reread",
        "name",
        "offsets",
        "ordering",
        "parked",
        "parking_limit",
        "start",
        "state",
        "suspect_offsets",
        "taken_at",
        "topic_id",
        "total",
        "turn",
        "weight",
    )

    def __init__(self, name: TopicPartition, start: Position, ordering: Ordering, parking_limit: int) -> None:
        self.name = name
        self.state = PartitionState.ASSIGNED
        self.offsets = OffsetTracker(start.epoch, start.offset)
        self.fencing_token: bytes | None = None
        self.parked: dict[bytes | None, set[int]] = {}
        self.total = 0
        self.crashes = 0
        self.suspect_offsets: dict[int, int] = {}
        self.crash_watermark = 0
        self.first_new: int | None = None
        self.held = False
        self.weight = 0
        self.mark: int | None = None
        self.start = 0
        self.end = 0
        self.forgotten_below = 0
        self.must_reread = False
        self.taken_at: float | None = None
        self.topic_id = ""
        self.turn = 0
        self.ordering = ordering
        self.parking_limit = parking_limit

    def delivered(self, message: Message) -> bool:
        """Record a fetched message; return False if it is already in hand or finished."""
        if not self.offsets.delivered(message.offset):
            return False
        self.weight += cost(message)
        return True

    def restart(self, epoch: int) -> None:
        """Forget messages in hand and finished ones: all is read again from the mark, under a new epoch."""
        self.offsets = OffsetTracker(epoch, self.mark)
        self.first_new = None
        self.must_reread = False
        self.weight = 0

    def taken(self, found: Taken, parked: dict[bytes | None, set[int]], place: StartPosition, end: int) -> None:
        """Record a takeover: the parked messages, where to begin, and where the log ends."""
        self.fencing_token = found.owner
        self.taken_at = time.monotonic()
        if self.state is not PartitionState.LEAVING:
            self.state = PartitionState.OWNED
        self.mark, self.start, self.end = place.offset, place.start, end
        self.forgotten_below = found.standing.forgotten_below
        self.crashes, self.suspect_offsets = found.crashes, found.suspect_offsets
        self.parked = parked
        self.total = sum(map(len, parked.values()))
        if found.crashes:
            self.crash_watermark = max((number for numbers in parked.values() for number in numbers), default=0)

    def mark_in_doubt(self) -> None:
        """Begin nothing more: our ownership is in doubt."""
        self.fencing_token = None
        if self.state is not PartitionState.LEAVING:
            self.state = PartitionState.IN_DOUBT

    def confirm(self) -> None:
        """Record that Kafka has accepted an offset commit of this assignment, or would accept one."""
        if self.state is PartitionState.IN_DOUBT:
            self.state = PartitionState.ASSIGNED

    def stop(self) -> None:
        """Give the partition up until a person acts; it is then read again from its mark."""
        self.must_reread = True
        if self.state is not PartitionState.LEAVING:
            self.state = PartitionState.STOPPED

    def leave(self) -> None:
        """Begin nothing more: the partition is being given back."""
        self.state = PartitionState.LEAVING

    @property
    def is_leaving(self) -> bool:
        """Whether it is being given back."""
        return self.state is PartitionState.LEAVING

    @property
    def ready(self) -> bool:
        """Whether new messages may begin: we own the fence, the lot has room, no parked message blocks all."""
        return self.fencing_token is not None and not self.is_full and not self.waits_in_order

    @property
    def is_full(self) -> bool:
        """Whether its parking lot has no room."""
        return self.total >= self.parking_limit

    @property
    def waits_in_order(self) -> bool:
        """Whether the whole partition waits behind a parked message."""
        return self.total > 0 and self.ordering is Ordering.PARTITION

    @property
    def isolated(self) -> bool:
        """Whether its messages run alone in the process: four owners died here without progress."""
        return self.crashes >= ISOLATED_AFTER

    @property
    def got_further(self) -> bool:
        """Whether this owner got further than the owners that died here."""
        position = self.offsets.position
        if not self.crashes or self.first_new is None or position is None or position <= self.first_new:
            return False
        if not self.isolated:
            return True
        all_done = not self.offsets.unfinished and self.offsets.reread_from is None
        return position >= self.first_new + ISOLATED_FOR or all_done

    @property
    def remembers_crashes(self) -> bool:
        """Whether the next new outcome ends the count of the owners that died here."""
        return 0 < self.crashes < ISOLATED_AFTER

    def recorded(self, offset: int) -> None:
        """Record that this owner was the first to record a message's outcome."""
        self.first_new = offset if self.first_new is None else min(self.first_new, offset)

    def blocked(self, message: Message) -> bool:
        """Whether a message must wait behind a parked one of its key."""
        if not self.total or self.ordering is not Ordering.KEY or message.key is None:
            return False
        return message.key in self.parked

    def park(self, message: Message, number: int) -> None:
        """Record a message that was parked; a second call changes nothing."""
        numbers = self.parked.setdefault(message.key, set())
        if number not in numbers:
            numbers.add(number)
            self.total += 1

    def unpark(self, message: Message, number: int) -> None:
        """Record a message that is no longer parked; a second call changes nothing."""
        numbers = self.parked.get(message.key, set())
        if number in numbers:
            numbers.remove(number)
            self.total -= 1
        if not numbers:
            self.parked.pop(message.key, None)
