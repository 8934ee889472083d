"""What becomes of steps and of their undos."""

from __future__ import annotations

from dataclasses import dataclass, field

from consumerkit.events.event import Event
from consumerkit.message import TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsRun(Event):
    """The steps of a batch, or one in the middle of `handle`, are over; see `consumerkit.step`.

    Attributes:
        called: Calls whose results are kept.
        reused: Steps that had been done before, and were not called again.
        failed: Calls that raised an error.
        seconds: How long that took.
    """

    called: int
    reused: int
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAwaited(Event):
    """A step has begun elsewhere, or before a crash: its message is parked for `wait` seconds, without an attempt.

    With `undoing` the message was dead and runs again, and what the step did is undone first.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    step: str
    wait: float
    undoing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDoubted(Event):
    """A step has begun, its deadline has passed, and its result was not kept: it is unknown whether it was done.

    `then` is what becomes of it: "called again", "asked" or "dead-lettered". `calls` counts how often it was begun.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    step: str
    calls: int
    then: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUndone(Event):
    """What a step did is undone, since its message is dead.

    Attributes:
        message_id: The message's ID, as text.
        step: The step.
        letter: The message's dead letter.
        called: Whether its undo was called; False where the other side said that it was never done.
    """

    message_id: str
    step: str
    letter: int | None
    called: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUndoFailed(Event):
    """The undo of a step has failed; it is tried again after `wait` seconds, or not at all where that is None.

    Then it has a dead letter of its own, `letter`, and `MessageDeadLettered` announces it, too. `in_full` is as in
    `AttemptFailed`.
    """

    message_id: str
    step: str
    attempt: int
    error: str
    wait: float | None
    letter: int | None = None
    in_full: str = field(default="", repr=False)
