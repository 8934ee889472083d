"""Runs the user's code in a fresh context, so that no attempt sees what another one set.

A lane runs one message after another in one task or thread. Without fresh contexts, a context variable, a decimal
precision or a bound log field that a handler sets for one message would stay for all later ones.
"""

from __future__ import annotations

import decimal
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context, copy_context
from types import coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from consumerkit.engine.transaction.outside_waits import Watch

T = TypeVar("T")
P = ParamSpec("P")


class FreshContexts:
    """Makes copies of the present context, each with its own decimal context."""

    __slots__ = ("_base", "_decimal")

    def __init__(self) -> None:
        self._base = copy_context()
        self._decimal = decimal.getcontext().copy()
        self._decimal.clear_flags()

    def new(self) -> Context:
        """Return another context."""
        made = self._base.copy()
        # A copied context shares the decimal context instead of copying it.
        made.run(decimal.setcontext, self._decimal.copy())
        return made

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a plain function in another context."""
        return self.new().run(function, *args, **kwargs)


@coroutine
def in_context(
    context: Context, function: Callable[..., Awaitable[T]], *args: object, watch: Watch | None = None
) -> Generator[Any, Any, T]:
    """Call a coroutine function in a context, and await it there, step by step, in the caller's own task.

    A separate task would cost more than the rest of a message, and would need its own cancellation. So this passes on
    each awaited object and each value or error sent in. Timeouts and cancellations reach the coroutine as usual.

    `watch` is called at each wait for a future; a coroutine that yields None, as `sleep(0)` does, waits for nothing.
    """
    run = context.run
    steps: Any = run(function, *args)
    if not hasattr(steps, "send"):
        steps = run(steps.__await__)
    step, argument = steps.send, None
    while True:
        try:
            awaited = run(step, argument)
        except StopIteration as done:
            return cast("T", done.value)
        wait = None if watch is None or awaited is None else watch.suspended(steps, awaited)
        try:
            step, argument = steps.send, (yield awaited)
        except GeneratorExit:
            run(steps.close)
            raise
        except BaseException as error:  # noqa: BLE001 - thrown into the coroutine, which decides
            step, argument = steps.throw, error
        if wait is not None:
            wait.over()
