"""Events about steps and their undos."""

from __future__ import annotations

from dataclasses import dataclass, field

from consumerkit.events.event import Event
from consumerkit.message import TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsRun(Event):
    """The steps of a batch, or a step within `handle`, have ended; see `consumerkit.step`.

    Attributes:
        called: Calls whose results are kept.
        reused: Steps that were already done, and not called again.
        failed: Calls that raised an error.
        seconds: How long the steps took.
    """

    called: int
    reused: int
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAwaited(Event):
    """A step began elsewhere or before a crash: its message is parked for `wait` seconds, without an attempt.

    With `undoing`, the message was dead and runs again, after the step is undone.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    step: str
    wait: float
    undoing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDoubted(Event):
    """A step's deadline has passed and its result was not kept: it is unknown whether the step was done.

    `then` is what happens next: "called again", "asked" or "dead-lettered". `calls` counts how
    often the step began.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    step: str
    calls: int
    then: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUndone(Event):
    """A step is undone, since its message is dead.

    Attributes:
        message_id: The message's ID, as text.
        step: The step.
        letter: The message's dead letter.
        called: Whether its undo was called; False where the other side said that the step was never
            done.
    """

    message_id: str
    step: str
    letter: int | None
    called: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUndoFailed(Event):
    """The undo of a step has failed; it is tried again after `wait` seconds, or never if `wait` is None.

    An undo that is not tried again has a dead letter, `letter`, which `MessageDeadLettered`
    announces too. `in_full` is as in `AttemptFailed`.
    """

    message_id: str
    step: str
    attempt: int
    error: str
    wait: float | None
    letter: int | None = None
    in_full: str = field(default="", repr=False)
