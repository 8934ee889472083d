"""Waiting for an event for a limited time, so that a cancellation always ends it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

_LEAST: Final = 1.0


async def wait_until_set(event: asyncio.Event, within: float | None) -> bool:
    """Wait until an event is set; return whether it was, within so many seconds (None: however long it takes).

    `asyncio.wait_for` would not do: on Python 3.11 it swallows a cancellation that comes just when the event is set
    (python/cpython#86296), and who waits in a loop would go on after its end.

    Example:
        >>> asyncio.run(wait_until_set(asyncio.Event(), 0.01))
        False
    """
    try:
        async with asyncio.timeout(within):
            await event.wait()
    except TimeoutError:
        return False
    return True


def remaining(end: float) -> float:
    """Return the seconds until a moment of the monotonic clock; one second where it is nearer or past.

    Example:
        >>> remaining(time.monotonic() - 5.0)
        1.0
    """
    return max(_LEAST, end - time.monotonic())
