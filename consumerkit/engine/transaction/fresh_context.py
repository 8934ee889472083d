"""Runs the user's code in a context of its own: what one attempt sets, no other sees.

A lane runs one message after another in one task or thread. A context variable, a decimal precision or a bound log
field that a handler sets for one message would otherwise stay for all later ones.
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
    """Makes contexts that are as this one is now, with a decimal context of their own."""

    __slots__ = ("_base", "_decimal")

    def __init__(self) -> None:
        self._base = copy_context()
        self._decimal = decimal.getcontext().copy()
        self._decimal.clear_flags()

    def new(self) -> Context:
        """Return another context."""
        made = self._base.copy()
        # A copied context has the same decimal context, not a copy of it.
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

    A task of its own would cost more than all the rest of a message, and be another one to be cancelled. So what it
    waits for, and what it is sent or thrown, is passed on: timeouts and cancellations reach it as they would without.

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
