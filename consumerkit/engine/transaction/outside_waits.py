"""Notices where a coroutine handler waits for something other than its session.

Such a wait may have an effect outside the database, which a neighbour's failure in the same transaction would repeat.
At each future that the coroutine awaits, this module asks the driver of the session's connection whether it is busy.
If it is idle, the wait is checked again one turn of the event loop later. By then each task that the handler has
started has run its first step, so a task that uses the session has made the driver busy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Final

from consumerkit.engine.transaction.session_guard import Guard
from consumerkit.engine.transaction.sharing import Sharing
from consumerkit.observability.user_code import Frame, is_theirs, place_of_frame, place_of_function
from consumerkit.steps import MessageSteps
from consumerkit.storage.dialects.under_way import DriverState, driver_state

_FRAMES: Final = ("cr_frame", "gi_frame", "ag_frame")
_AWAITED: Final = ("cr_await", "gi_yieldfrom", "ag_await")


class Watch:
    """Watches the handler's calls in one transaction.

    Attributes:
        steps: The steps of the message whose code runs. Their waits do not count: a step runs once, even if the batch
            fails.
    """

    __slots__ = ("_statements", "driver", "function", "sharing", "steps")

    def __init__(self, sharing: Sharing, guard: Guard, driver: DriverState, function: object) -> None:
        self.sharing = sharing
        self.driver = driver
        self.function = function
        self.steps: MessageSteps | None = None
        self._statements = guard.statements

    def suspended(self, running: Any, awaited: object) -> OutsideWait | None:
        """Return a coroutine's wait for a future, which begins now; None for a wait for the session."""
        if self.driver.under_way() or not self.sharing.notices:
            return None
        return OutsideWait(self, running, awaited)

    @property
    def asked(self) -> int:
        """How many statements the session has sent."""
        return self._statements.asked

    def is_idle(self, asked: int) -> bool:
        """Tell whether neither the session nor a step is busy, and no statement was sent since `asked` of them."""
        if self.asked != asked or self.driver.under_way():
            return False
        return self.steps is None or not self.steps.at_work


class OutsideWait:
    """One wait of a handler, from its beginning."""

    __slots__ = ("_asked", "_awaited", "_began", "_over", "_place", "_running", "_watch")

    def __init__(self, watch: Watch, running: Any, awaited: object) -> None:
        self._watch = watch
        self._running = running
        self._awaited = awaited
        self._began = time.monotonic()
        self._asked = watch.asked
        self._place: str | None = None
        self._over = False
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        if self._over or not self._watch.is_idle(self._asked):
            return
        frames = list(_frames(self._running))
        if any(map(self._watch.driver.runs, frames)):
            return
        tasks = _tasks(self._awaited, frames)
        if tasks is None or not all(task.done() for task in tasks):
            self._place = _place(frames) or place_of_function(self._watch.function)

    def over(self) -> None:
        """End the wait; record it if it was certainly not for the session."""
        self._over = True
        if self._place is not None and self._watch.is_idle(self._asked):
            self._watch.sharing.notice(self._place, time.monotonic() - self._began)


def watch(sharing: Sharing, guard: Guard, function: object) -> Watch | None:
    """Return the watch of a handler's calls; None if there is nothing to notice or no way to notice it."""
    if not sharing.notices or guard.connection is None:
        return None
    driver = driver_state(guard.connection)
    return None if driver is None else Watch(sharing, guard, driver, function)


def _frames(running: Any) -> Iterator[FrameType]:
    """Yield the frames of a suspended coroutine and of those that it awaits, the innermost last."""
    while running is not None:
        frame = next((found for name in _FRAMES if (found := getattr(running, name, None)) is not None), None)
        if frame is not None:
            yield frame
        running = next((found for name in _AWAITED if (found := getattr(running, name, None)) is not None), None)


def _tasks(awaited: Any, frames: list[FrameType]) -> Iterable[asyncio.Future[Any]] | None:
    """Return the tasks that asyncio's own functions wait for; None if the wait is not for tasks.

    Tasks that ended in their first step never waited: `wait_for` makes a task of any coroutine.
    """
    if isinstance(awaited, asyncio.Task):
        return [awaited]
    found: Iterable[asyncio.Future[Any]] | None = getattr(awaited, "_children", None)
    if found is not None or not frames or not frames[-1].f_globals.get("__name__", "").startswith("asyncio."):
        return found
    inner = frames[-1].f_locals
    if isinstance(group := inner.get("self"), asyncio.TaskGroup):
        found = group._tasks  # noqa: SLF001 - there is no other way to ask
    elif asyncio.isfuture(task := inner.get("fut")):
        found = [task]
    return found


def _place(frames: list[FrameType]) -> str:
    for frame in reversed(frames):
        code = frame.f_code
        if is_theirs(code.co_filename):
            return place_of_frame(Frame(code.co_filename, frame.f_lineno, code.co_name, code.co_qualname))
    return ""
