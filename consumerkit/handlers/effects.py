"""What `prepare` gets to run its steps with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from consumerkit.errors import SessionOver
from consumerkit.handlers.steps import BoundStep

P = ParamSpec("P")
T = TypeVar("T")


class StepCalls(Protocol):
    """Runs the steps of one message."""

    def run(self, step: BoundStep[..., Any], args: Sequence[Any], kwargs: dict[str, Any], *, inside: bool) -> Any:
        """Return the result or its coroutine; `inside` tells whether it runs within the message's transaction."""

    def done(self, step: BoundStep[..., Any]) -> Any:
        """Return the result of a step that is done."""

    def alive(self) -> Any:
        """Extend the deadline of the running step, or return the coroutine that does."""


class _Effects:
    """Runs the steps of one message; `prepare` gets it."""

    __slots__ = ("_calls", "_over", "message_id")

    def __init__(self, calls: StepCalls, message_id: str) -> None:
        self._calls = calls
        self._over = False
        self.message_id = message_id

    def close(self) -> None:
        """Refuse further steps; consumerkit calls this when `prepare` has returned."""
        self._over = True

    def _run(self, step: BoundStep[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self._over:
            raise SessionOver(
                f"{step!r} was run by effects.run after prepare had returned; await in prepare what it starts, and in "
                "handle use context.run"
            )
        return self._calls.run(step, args, kwargs, inside=False)


class Effects(_Effects):
    """Runs the steps of one message before its transaction; a coroutine `prepare` gets it.

    `prepare` may pass it to a step, where it does not count as an argument.

    Attributes:
        message_id: The message ID as text for people.
    """

    __slots__ = ()

    async def run(self, step: BoundStep[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the step's result, from a new call or from an earlier one.

        Raises:
            StepUnderWay: An earlier call may still be under way elsewhere: the message is parked
                until the call's deadline, without an attempt.
            StepInDoubt: It is unknown whether a call was done, and the step says "dead-letter".
            StepChanged: The step was run for this message with other arguments.
            SessionOver: `prepare` has returned.
            Exception: The step's own error; it meets the handler's `retry`.
        """
        result: T = await self._run(step, args, kwargs)
        return result

    async def alive(self) -> None:
        """Extend the deadline of the running step: it counts from now.

        Raises:
            StepUnderWay: The deadline has passed, and another process has taken the step over.
        """
        await self._calls.alive()


class PlainEffects(_Effects):
    """As `Effects`, for a plain `prepare`, which runs in a thread."""

    __slots__ = ()

    def run(self, step: BoundStep[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the step's result; see `Effects.run`."""
        result: T = self._run(step, args, kwargs)
        return result

    def alive(self) -> None:
        """Extend the deadline of the running step; see `Effects.alive`."""
        self._calls.alive()
