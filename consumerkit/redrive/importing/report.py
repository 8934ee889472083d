"""The results of an import of a dead-letter topic."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from consumerkit.dead_letters.formats import Origin
from consumerkit.message import Message
from consumerkit.outcome import Reason


class ImportResult(StrEnum):
    """The result of one record; the values are texts for people."""

    IMPORTED = "imported"
    BESIDE = "imported beside another message of its place"
    CONFLICT = "imported as a conflict"
    PRESENT = "there already"
    PROCESSED = "processed already"
    PARKED = "being tried already"
    OTHERS = "another handler's"
    SKIPPED = "skipped by the handler"
    ABSENT = "without its message"
    OVERSIZED = "larger than size_limit"
    UNPLACED = "from another topic"
    UNRECOGNISED = "of no convention"
    MALFORMED = "malformed"
    REFUSED = "refused"

    @property
    def is_import(self) -> bool:
        """Whether the record has become a dead letter of the handler."""
        return self in (ImportResult.IMPORTED, ImportResult.BESIDE, ImportResult.CONFLICT)

    @property
    def wants_a_look(self) -> bool:
        """Whether a person should look at the record: it was left alone, or entered beside another one."""
        return self in _TO_LOOK_AT


_TO_LOOK_AT = frozenset(
    {
        ImportResult.BESIDE,
        ImportResult.ABSENT,
        ImportResult.OVERSIZED,
        ImportResult.UNPLACED,
        ImportResult.UNRECOGNISED,
        ImportResult.MALFORMED,
        ImportResult.REFUSED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One record and its result, without the payload.

    Attributes:
        record: The record's place in the dead-letter topic.
        result: The result.
        why: The reason for people: what is malformed, or the message's last error.
        origin: Where the message stood, if it is known.
        message_id: Its ID, if one was found.
        reason: Why it is dead, if the record says so.
    """

    record: Origin
    result: ImportResult
    why: str = ""
    origin: Origin | None = None
    message_id: str | None = None
    reason: Reason | None = None


def place_of(record: Message) -> Origin:
    """Return a record's own place."""
    return Origin(record.topic, record.partition, record.offset)


class Placement(NamedTuple):
    """A letter's ID and the place to which it is redriven; sorted placements are in the order of the log."""

    topic: str
    topic_id: str
    partition: int
    offset: int
    id: int


@dataclass
class ImportReport:
    """What an import did, or in a dry run would do.

    Attributes:
        dry_run: Whether nothing was written.
        letters: The letters of all its records that the handler now has, in any state.
        counts: How many records had each result.
        lines: The first records: in a dry run all, else those that were not imported or stand beside another one.
        untold: How many more such records there are.
    """

    dry_run: bool = False
    letters: list[Placement] = field(default_factory=list)
    counts: Counter[ImportResult] = field(default_factory=Counter)
    lines: list[Line] = field(default_factory=list)
    untold: int = 0

    @property
    def imported(self) -> int:
        """How many records have become dead letters."""
        return sum(count for result, count in self.counts.items() if result.is_import)

    @property
    def wants_a_look(self) -> bool:
        """Whether a person should look at a record: it was left alone, or entered beside another one."""
        return any(result.wants_a_look for result in self.counts)
