"""What a run came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from consumerkit.message import TopicPartition
from consumerkit.redrive.decision import Fate


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter of a run.

    Attributes:
        id: Its ID.
        handler: The handler's name; empty where there is no such letter.
        partition: Where its message stood in the log; None where there is no such letter, or it was not dead.
        offset: And at which offset.
        message_id: The message ID, for people.
        reason: Why it was dead.
        fate: What became of it, or in a dry run would become.
    """

    id: int
    handler: str = ""
    partition: TopicPartition | None = None
    offset: int | None = None
    message_id: str = ""
    reason: str = ""
    fate: Fate


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run came to.

    Attributes:
        letters: Every letter that was looked at, in the order in which that was done.
        dry_run: Whether nothing was changed.
        busy: The partitions that were left, since a transaction of their owner did not end in time.
    """

    letters: tuple[Letter, ...] = ()
    dry_run: bool = False
    busy: tuple[TopicPartition, ...] = ()
    counts: Mapping[Fate, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", dict(Counter(letter.fate for letter in self.letters)))

    @property
    def done(self) -> int:
        """How many letters are no longer among the dead ones."""
        return sum(count for fate, count in self.counts.items() if fate.is_done)

    @property
    def redriven(self) -> int:
        """How many were parked again."""
        return self.counts.get(Fate.REDRIVEN, 0)

    @property
    def left(self) -> tuple[Letter, ...]:
        """The letters that were left as they are; `fate.way_out` tells what to do about each."""
        return tuple(letter for letter in self.letters if not letter.fate.is_done)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: `looked_at` letters of about `total`."""

    looked_at: int
    total: int
    partition: TopicPartition
