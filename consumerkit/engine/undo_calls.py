"""Calls the user's undo and turns anything it raises into an ordinary error; announces trouble of undoing itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from consumerkit import events
from consumerkit.concurrency import in_thread
from consumerkit.engine.transaction import failures
from consumerkit.events import Announcer


def contained(method: Callable[[], Any]) -> Any:
    """Call a function; an exception that would end the process, such as SystemExit, becomes an error."""
    try:
        return in_thread(method)
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"the undo raised {type(error).__name__}") from error


async def contained_coroutine(method: Callable[[], Any]) -> Any:
    """Await a coroutine function; an exception that would end the process becomes an error."""
    # A task that raises SystemExit would end the event loop.
    try:
        return await method()
    except Exception:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError(f"the undo raised {type(error).__name__}") from error


class UndoTrouble:
    """Announces that undoing fails for a reason of consumerkit's own, and when it works again.

    Args:
        announce: Announces events.
    """

    def __init__(self, announce: Announcer) -> None:
        self._announce = announce
        self._since: float | None = None

    def ended(self, work: asyncio.Task[None], wait: float) -> None:
        """Note the end of the work on a message's undos; if it failed, it is done again after `wait` seconds."""
        if work.cancelled():
            return
        if (error := work.exception()) is None:
            self.over()
            return
        self._since = self._since or time.monotonic()
        self._announce(events.Trouble(where="undo", error=failures.described(error), wait=wait))

    def over(self) -> None:
        """Announce that undoing works, or that nothing is left to undo, if it was in trouble."""
        if self._since is not None:
            seconds, self._since = time.monotonic() - self._since, None
            self._announce(events.TroubleOver(where="undo", seconds=seconds))
