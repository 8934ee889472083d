"""The values of the record of steps."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple


class StepState(StrEnum):
    """The state of a step; the names are stored.

    STARTED: it was called, or is about to be; after a crash it is unknown whether the call was
    done.
    DONE: its result is kept, and it is not called again.
    FAILED: the call raised an error.
    UNDOING: its message is dead, and its effect is to be undone, or to be settled first.
    UNDONE: the undo is done; a redrive begins the step again, in its next generation.
    NOT_UNDONE: its undo has failed for good, and has a dead letter of its own.
    """

    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    NOT_UNDONE = "not undone"


TO_UNDO: Final = (StepState.UNDOING.value, StepState.NOT_UNDONE.value)
Name = tuple[bytes, str]
"""A message's digest, and the step's name."""


class Start(NamedTuple):
    """A step to call.

    Attributes:
        digest: The message's.
        step: Its name.
        arguments: The fingerprint of its arguments.
        deadline: Seconds that the call may take.
        settles: Whether to take over a call in doubt; otherwise it stays as it is, and is returned.
        undo: What its undo can do; see `DeclaredStep.undo`.
        given: Its arguments, if it has an undo.
    """

    digest: bytes
    step: str
    arguments: bytes
    deadline: float
    settles: bool
    undo: str | None = None
    given: bytes | None = None

    @property
    def name(self) -> Name:
        """The step and its message."""
        return self.digest, self.step


class FoundStep(NamedTuple):
    """The state of a step when it was to be begun, or read.

    Attributes:
        state: See `StepState`; None if it had not been begun.
        arguments: The fingerprint of the arguments that it was begun with.
        result: What it returned, as JSON.
        wait: Seconds until its deadline; 0 or less once that has passed.
        ours: Whether this call began it, so that the caller is to run it.
        calls: How often it was begun, this time included.
        generation: How often the step was begun again after an undo, plus 1: part of the key for
            the other side.
        undo_letter: The dead letter of its undo, if that has failed for good.
    """

    state: StepState | None
    arguments: bytes
    result: str | None = None
    wait: float = 0.0
    ours: bool = False
    calls: int = 1
    generation: int = 1
    undo_letter: int | None = None


class End(NamedTuple):
    """The outcome of a call."""

    digest: bytes
    step: str
    state: StepState
    result: str | None = None

    @property
    def name(self) -> Name:
        """The step and its message."""
        return self.digest, self.step


class StoredStep(NamedTuple):
    """A step as shown to people; all times are in UTC, or without a zone if the database has none."""

    step: str
    state: str
    calls: int
    started_at: datetime
    deadline_at: datetime
    ended_at: datetime | None
    generation: int
    undo_at: datetime | None
    undo_attempts: int
    undo_letter: int | None
