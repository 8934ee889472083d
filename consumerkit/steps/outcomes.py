"""What came of one message's steps: begins and ends calls in the journal, and remembers what is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from consumerkit import events
from consumerkit.errors import Fenced, StepChanged, StepInDoubt, StepUnderWay, Unavailable
from consumerkit.failpoints import reach
from consumerkit.handlers.declared_steps import DeclaredStep
from consumerkit.handlers.steps import IdempotencyKey
from consumerkit.steps.arguments import kept_arguments
from consumerkit.steps.step_call import StepCall
from consumerkit.steps.subject import Subject
from consumerkit.storage.step_values import End, FoundStep, Name, Start, StepState

if TYPE_CHECKING:
    from consumerkit.steps.lane_steps import LaneSteps

_SOON: Final = 1.0
"""Seconds until the next try of a message whose step another worker has begun."""
_OURS: Final = (Fenced, StepChanged, StepInDoubt, StepUnderWay, Unavailable)


class StepOutcomes:
    """Knows which steps of a message are done, and records what comes of the others; runs in the event loop.

    Attributes:
        failure: The error that a step raised; `prepare` or `handle` must not go on after it.
    """

    def __init__(self, lane: LaneSteps, subject: Subject, memo: Mapping[str, FoundStep]) -> None:
        self.failure: Exception | None = None
        self._lane = lane
        self._subject = subject
        self._memo = dict(memo)

    def done(self, declared: DeclaredStep) -> Any:
        """Return the result of a step that is done.

        Raises:
            LookupError: It was not run for this message.
        """
        found = self._memo.get(declared.name)
        if found is None or found.state is not StepState.DONE:
            raise LookupError(
                f"step {declared.name!r} has not run for this message; run it in prepare, or by context.run"
            )
        return read(declared, found.result)

    def key(self, step: str, generation: int) -> IdempotencyKey:
        """Return the key of a step's generation for the other side."""
        return IdempotencyKey.of(self._lane.shared.name, self._subject.digest, step, generation)

    def of_generation(self, call: StepCall, generation: int) -> StepCall:
        """Return the call with the key of its generation."""
        return call if generation == 1 else call._replace(key=self.key(call.name, generation))

    def _name(self, step: str) -> Name:
        return self._subject.digest, step

    def remembered(self, call: StepCall) -> FoundStep | None:
        """Return the outcome of a step that is done, without a look into the database."""
        found = self._memo.get(call.name)
        if found is None or found.state is not StepState.DONE:
            return None
        with self._told():
            self._check_same(call, found)
        self._lane.reused += 1
        return found

    async def begin(self, call: StepCall) -> FoundStep:
        """Begin a step, or return its earlier outcome."""
        step = call.declared
        settles = step.asks is not None or step.in_doubt == "retry" or self._subject.redriven
        given = None if step.undo is None else kept_arguments(step, call.args, call.kwargs)
        start = Start(self._subject.digest, step.name, call.arguments, step.deadline, settles, step.undo, given)
        with self._told():
            found = await self._lane.journal.start(start)
            self._check_undone(call, found)
            self._check_same(call, found)
            if found.ours:
                if found.state is StepState.STARTED:
                    self._tell_doubt(call, found, "asked" if step.asks is not None else "called again")
                reach("step_started")
            elif found.state is StepState.DONE:
                self._lane.reused += 1
                self._memo[call.name] = found
            elif found.wait > 0:
                self._tell_wait(call, found)
                why = (
                    f"step {step.name!r} has begun elsewhere and has no result yet; its deadline is in "
                    f"{found.wait:.0f} s"
                )
                raise StepUnderWay(found.wait, why)
            else:
                self._tell_doubt(call, found, "dead-lettered")
                raise StepInDoubt(
                    f"step {step.name!r} may have happened: it was begun, its result was not kept, and it has no "
                    f"confirm; look for the key {self.key(step.name, found.generation)} on the other side: a redrive "
                    "calls it again"
                )
        return found

    async def keep(self, call: StepCall, result: object) -> FoundStep:
        """Record a call's result."""
        reach("step_called")
        text = self._written(call, result)
        with self._told():
            if not await self._lane.journal.end(End(*self._name(call.name), StepState.DONE, text)):
                raise StepUnderWay(_SOON, f"step {call.name!r} took too long, and another worker has begun it since")
        reach("step_done")
        self._lane.called += 1
        self._memo[call.name] = found = FoundStep(StepState.DONE, call.arguments, text)
        return found

    def _written(self, call: StepCall, result: object) -> str:
        """Return a call's result as JSON.

        Raises:
            StepInDoubt: It cannot be kept. The call was made, so another attempt would only repeat its effect.
        """
        try:
            text = call.declared.result.dump_json(result, warnings=False).decode()
            read(call.declared, text)
        except Exception as error:
            self._lane.failed += 1
            with self._told():
                raise StepInDoubt(
                    f"step {call.name!r} was called and returned {type(result).__name__}, which cannot be kept as its "
                    f"annotated type: {type(error).__name__}; return what the annotation says, or change it: a redrive "
                    "calls the step again, with the same key"
                ) from error
        return text

    async def failed(self, call: StepCall) -> None:
        """Record that a call raised; the handler's `retry` then decides, not the step's deadline."""
        self._lane.failed += 1
        # The step's own error says more than a failure here. The journal writes this record before the step begins
        # again, and the next write finds a partition that is no longer ours.
        with suppress(Fenced, Unavailable):
            await self._lane.journal.end(End(*self._name(call.name), StepState.FAILED))

    async def extend(self, declared: DeclaredStep) -> None:
        """Give a running step its whole deadline once more.

        Raises:
            StepUnderWay: Another worker has begun it since.
        """
        with self._told():
            if not await self._lane.journal.extend(self._name(declared.name), declared.deadline):
                raise StepUnderWay(
                    _SOON, f"step {declared.name!r} took too long, and another worker has begun it since"
                )

    def _check_undone(self, call: StepCall, found: FoundStep) -> None:
        """Refuse to begin a step that must be undone first because its message was dead."""
        if found.state is StepState.UNDOING:
            self._tell_wait(call, found, undoing=True)
            raise StepUnderWay(
                max(_SOON, found.wait),
                f"step {call.name!r} must be undone before it is called again: its message died",
            )
        if found.state is StepState.NOT_UNDONE:
            raise StepInDoubt(
                f"step {call.name!r} could not be undone when its message died: decide on dead letter "
                f"{found.undo_letter} of its undo first; redrive it, or undo the step by hand and resolve it"
            )

    def _check_same(self, call: StepCall, found: FoundStep) -> None:
        if found.arguments != call.arguments:
            raise StepChanged(
                f"step {call.name!r} ran for this message before, with other arguments; give it the same arguments "
                "each time, or declare a second step for a second effect"
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Keep the error that the handler gets, so that it cannot go on as if the step had succeeded."""
        try:
            yield
        except _OURS as error:
            self.failure = self.failure or error
            raise

    def _tell_wait(self, call: StepCall, found: FoundStep, *, undoing: bool = False) -> None:
        told = events.StepAwaited(**self._about(call), wait=found.wait, undoing=undoing)
        self._lane.announce(told, self._subject.message)

    def _tell_doubt(self, call: StepCall, found: FoundStep, then: str) -> None:
        told = events.StepDoubted(**self._about(call), calls=found.calls, then=then)
        self._lane.announce(told, self._subject.message)

    def _about(self, call: StepCall) -> dict[str, Any]:
        """Return what each event of a step says about the step and its message."""
        return {
            "handler": self._lane.shared.name,
            "partition": self._subject.partition,
            "offset": self._subject.place[3],
            "message_id": self._subject.message_id,
            "step": call.name,
        }


def read(declared: DeclaredStep, result: str | None) -> Any:
    """Return a step's kept result as its annotated type."""
    return declared.result.validate_json(result or "null")
