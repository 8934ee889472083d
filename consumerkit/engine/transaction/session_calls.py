"""Notices session calls that were never awaited: their changes are missing, so the message is not done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from consumerkit.errors import AwaitForgotten

_WATCHED: Final = tuple(name for name, method in vars(AsyncSession).items() if inspect.iscoroutinefunction(method))


class SessionCalls:
    """The calls on one session that are not awaited yet."""

    def __init__(self) -> None:
        self._open: dict[int, str] = {}
        self._numbers = count()

    def check(self, where: str) -> None:
        """Refuse calls that were never awaited.

        Args:
            where: The calling method, for the error's text.

        Raises:
            AwaitForgotten: There is such a call.
        """
        if self._open:
            names = ", ".join(f"session.{name}()" for name in dict.fromkeys(self._open.values()))
            self._open.clear()
            raise AwaitForgotten(f"{where} called {names} without await, so nothing was done; await each call")

    def watched(self, name: str, method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """Return a method that does the same, and records whether it is awaited."""

        def call(*args: Any, **kwargs: Any) -> Any:
            number = next(self._numbers)
            self._open[number] = name
            made: Any = self._awaited(number, method, args, kwargs)
            made.__qualname__ = f"AsyncSession.{name}"  # Python's own warning names it
            return made

        return call

    async def _awaited(self, number: int, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._open.pop(number, None)
        return await method(*args, **kwargs)


@contextmanager
def watching(session: AsyncSession) -> Iterator[SessionCalls]:
    """Watch a session's calls until the end of the block."""
    calls, own = SessionCalls(), vars(session)
    # An attribute of the instance itself is not ours; a test may have set it.
    names = [name for name in _WATCHED if name not in own]
    for name in names:
        own[name] = calls.watched(name, getattr(session, name))
    try:
        yield calls
    finally:
        # Each refers to the session, which only the garbage collector could then free.
        for name in names:
            own.pop(name, None)
