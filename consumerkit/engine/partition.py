"""What an engine knows of the partitions it was given: their offsets, their fence, and what is parked of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from consumerkit.engine.offsets import OffsetTracker
from consumerkit.engine.placing import Beginning
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.fence import Taken
from consumerkit.storage.parking import Place
from consumerkit.transports.base import Position

# Not two, as one would think: see docs/decisions/0014.
ISOLATED_AFTER: Final = 4
# After a second death groups are small until one is committed, so that later the culprit stands near. If isolation ends
# before it is reached all the same, the next deaths begin another one, closer to it.
CAREFUL_SIZE: Final = 100
ISOLATED_FOR: Final = 100


class Partition:
    """One partition under one assignment.

    Attributes:
        name: Topic and number.
        offsets: What is in hand, and the assignment's epoch.
        owner: The token by which the database knows us as its owner; None until it was taken over, or while that is in
            doubt. Without it nothing of the partition begins.
        parked: The numbers of the messages that are parked, by key.
        total: How many these are.
        deaths, suspects: See `consumerkit.storage.fence.Taken`.
        haunted: The highest number in the lot when a partition was taken whose owner had died: one of these may have
            killed it, so their runs are written down before they begin. What was parked since then has killed nobody.
        held: Whether the consumer was told to fetch nothing more of it.
        weight: Bytes that its messages in hand count for in the budget.
        began: The first offset fetched under this assignment.
        mark: The position that the database has; None until it was taken over.
        start: Where the consumer's first run began.
        end: No owner before has processed anything at or above it.
        forgotten_below: The IDs of messages below it may be forgotten, so that they cannot be proven new.
        adrift: Whether messages were let go of, so that it must be read again from the mark.
        topic_id: The topic's ID when it was taken over.
    """

    __slots__ = (
        "_limit",
        "_ordering",
        "adrift",
        "began",
        "deaths",
        "end",
        "forgotten_below",
        "haunted",
        "held",
        "mark",
        "name",
        "offsets",
        "owner",
        "parked",
        "start",
        "suspects",
        "topic_id",
        "total",
        "weight",
    )

    def __init__(self, name: TopicPartition, start: Position, ordering: Ordering, parking_limit: int) -> None:
        self.name = name
        self.offsets = OffsetTracker(start.epoch, start.offset)
        self.owner: bytes | None = None
        self.parked: dict[bytes | None, set[int]] = {}
        self.total = 0
        self.deaths = 0
        self.suspects: dict[int, int] = {}
        self.haunted = 0
        self.began: int | None = None
        self.held = False
        self.weight = 0
        self.mark: int | None = None
        self.start = 0
        self.end = 0
        self.forgotten_below = 0
        self.adrift = False
        self.topic_id = ""
        self._ordering = ordering
        self._limit = parking_limit

    def restart(self, epoch: int) -> None:
        """Forget what is in hand and what of it is finished: it is read again from the mark, under a new epoch."""
        leaving = self.offsets.leaving
        self.offsets = OffsetTracker(epoch, self.mark)
        self.offsets.leaving = leaving
        self.began = None
        self.adrift = False
        self.weight = 0

    def taken(self, found: Taken, parked: dict[bytes | None, set[int]], place: Beginning, end: int) -> None:
        """Take note of a take-over: what was found parked, where to begin, and where the log ends."""
        self.owner = found.owner
        self.mark, self.start, self.end = place.offset, place.start, end
        self.forgotten_below = found.standing.forgotten_below
        self.deaths, self.suspects = found.deaths, found.suspects
        self.parked = parked
        self.total = sum(map(len, parked.values()))
        if found.deaths:
            self.haunted = max((number for numbers in parked.values() for number in numbers), default=0)

    @property
    def ready(self) -> bool:
        """Whether new messages may begin: the fence is ours, the lot has room, and nothing ahead of all is parked."""
        return self.owner is not None and not self.is_full and not self.waits_in_order

    @property
    def is_full(self) -> bool:
        """Whether as many of its messages are parked as may be."""
        return self.total >= self._limit

    @property
    def waits_in_order(self) -> bool:
        """Whether all of it waits behind a parked message."""
        return self.total > 0 and self._ordering is Ordering.PARTITION

    @property
    def isolated(self) -> bool:
        """Whether its messages run one at a time, alone in the process: four owners died here and got no further."""
        return self.deaths >= ISOLATED_AFTER

    @property
    def calm(self) -> bool:
        """Whether this owner got further than those that died here."""
        position = self.offsets.position
        if not self.deaths or self.began is None or position is None:
            return False
        if not self.isolated:
            return position > self.began
        all_done = not self.offsets.unfinished and self.offsets.reread_from is None
        return position >= self.began + ISOLATED_FOR or all_done

    def advances(self, message: Message) -> bool:
        """Whether finishing this message gets a partition further in which an owner died before."""
        return 0 < self.deaths < ISOLATED_AFTER and message.offset == self.offsets.position

    def blocked(self, message: Message) -> bool:
        """Whether a message must wait behind a parked one of its key."""
        if not self.total or self._ordering is not Ordering.KEY or message.key is None:
            return False
        return message.key in self.parked

    def park(self, message: Message, number: int) -> None:
        """Take note of a message that was parked; to be told twice does no harm."""
        numbers = self.parked.setdefault(message.key, set())
        if number not in numbers:
            numbers.add(number)
            self.total += 1

    def unpark(self, message: Message, number: int) -> None:
        """Take note of a message that is no longer parked; to be told twice does no harm."""
        numbers = self.parked.get(message.key, set())
        if number in numbers:
            numbers.remove(number)
            self.total -= 1
        if not numbers:
            self.parked.pop(message.key, None)


class Partitions:
    """All partitions of an engine, by topic and number."""

    def __init__(self, ordering: Ordering, parking_limit: int) -> None:
        self._ordering = ordering
        self._limit = parking_limit
        self._by_name: dict[tuple[str, int], Partition] = {}

    def add(self, name: TopicPartition, start: Position) -> Partition:
        """Add a partition that was assigned."""
        made = self._by_name[name] = Partition(name, start, self._ordering, self._limit)
        return made

    def get(self, name: tuple[str, int]) -> Partition | None:
        """Return a partition that is assigned, or None."""
        return self._by_name.get(name)

    def pop(self, name: tuple[str, int]) -> None:
        """Forget a partition."""
        self._by_name.pop(name, None)

    def of(self, message: Message) -> Partition | None:
        """Return the partition of a message in hand, if the assignment it was fetched under still holds."""
        found = self._by_name.get((message.topic, message.partition))
        return found if found is not None and found.offsets.covers(message.epoch) else None

    def of_fetched(self, message: Message) -> Partition | None:
        """Return the partition of a message that `fetch` returned, unless it was fetched before the last `seek`.

        Nothing is taken on while a seek is due: it would be beyond what is to be read again.
        """
        found = self._by_name.get((message.topic, message.partition))
        if found is None or found.offsets.epoch != message.epoch or found.offsets.reread_from is not None:
            return None
        return found

    def knows(self, place: Place) -> bool:
        """Return whether a parked message is in our books."""
        found = self._by_name.get(place.partition)
        return found is not None and place.number in found.parked.get(place.key, ())

    def owned(self) -> list[Partition]:
        """Return the partitions for which we may act."""
        return [one for one in self._by_name.values() if one.owner is not None and not one.offsets.leaving]

    def __iter__(self) -> Iterator[Partition]:
        return iter(list(self._by_name.values()))
