"""Calls the user's undo and turns anything it raises into an ordinary error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from consumerkit.concurrency import in_thread


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
