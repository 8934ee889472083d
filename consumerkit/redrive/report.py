"""The result of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from consumerkit.message import TopicPartition
from consumerkit.redrive.decision import RedriveResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter of a run.

    Attributes:
        id: Its ID.
        handler: The handler's name; empty if there is no such letter.
        partition: The partition of its message; None if there is no such letter or it was not dead.
        offset: The offset of its message; None as for `partition`.
        message_id: The message ID, for people.
        reason: Why it was dead.
        result: The result; in a dry run, the result that it would have.
    """

    id: int
    handler: str = ""
    partition: TopicPartition | None = None
    offset: int | None = None
    message_id: str = ""
    reason: str = ""
    result: RedriveResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a run.

    Attributes:
        letters: All letters of the run, in the order in which it looked at them.
        dry_run: Whether nothing was changed.
        busy: The partitions that were left because a transaction of their owner did not end in time.
        undos: How many steps of the letters' messages still wait to be undone. The undos go on,
            whatever is decided on the letters; a redriven message runs after them.
    """

    letters: tuple[Letter, ...] = ()
    dry_run: bool = False
    busy: tuple[TopicPartition, ...] = ()
    undos: int = 0
    counts: Mapping[RedriveResult, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", dict(Counter(letter.result for letter in self.letters)))

    @property
    def done(self) -> int:
        """How many letters are no longer among the dead ones."""
        return sum(count for result, count in self.counts.items() if result.is_done)

    @property
    def redriven(self) -> int:
        """How many were parked again."""
        return self.counts.get(RedriveResult.REDRIVEN, 0)

    @property
    def left(self) -> tuple[Letter, ...]:
        """The letters that were left unchanged; `result.way_out` tells the remedy for each."""
        return tuple(letter for letter in self.letters if not letter.result.is_done)


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run: `looked_at` letters of about `total`."""

    looked_at: int
    total: int
    partition: TopicPartition
