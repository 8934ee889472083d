"""Three waits (until an event is set, for the first of several ends, for work without cancelling it), and threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

T = TypeVar("T")
_LEAST: Final = 1.0


async def wait_until_set(event: asyncio.Event, within: float | None) -> bool:
    """Wait at most `within` seconds (None: without limit) until an event is set; return whether it was set.

    `asyncio.wait_for` does not fit: on Python 3.11 it swallows a cancellation that comes just when
    the event is set (python/cpython#86296), and a caller that waits in a loop would continue after
    its end.

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


async def wait_for_first(*ends: asyncio.Event | asyncio.Future[Any], within: float | None) -> None:
    """Wait until one of the events is set, one of the futures is done, or `within` seconds are over.

    The futures are not cancelled, and their errors are not raised. None waits without limit.

    Example:
        >>> asyncio.run(wait_for_first(asyncio.Event(), asyncio.Event(), within=0.01))
    """
    waits = [asyncio.ensure_future(end.wait()) for end in ends if isinstance(end, asyncio.Event)]
    futures = [end for end in ends if not isinstance(end, asyncio.Event)]
    try:
        await asyncio.wait([*waits, *futures], timeout=within, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def wait_uncancelled(work: asyncio.Future[Any], within: float | None) -> bool:
    """Wait for `work` without cancelling it, and delay a cancellation of the caller until then.

    Returns:
        Whether the work is done within `within` seconds (None: without limit).
    """
    # Otherwise asyncio would log an error that no caller waits for, which may quote a handler's
    # data.
    work.add_done_callback(_look_at)
    loop = asyncio.get_running_loop()
    until = None if within is None else loop.time() + within
    cancelled = False
    while not work.done() and (until is None or loop.time() < until):
        try:
            await asyncio.wait({work}, timeout=None if until is None else until - loop.time())
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return work.done()


def _look_at(work: asyncio.Future[Any]) -> None:
    if not work.cancelled():
        work.exception()


def remaining(end: float) -> float:
    """Return the seconds until a time of the monotonic clock, but at least one second.

    Example:
        >>> remaining(time.monotonic() - 5.0)
        1.0
    """
    return max(_LEAST, end - time.monotonic())


@contextmanager
def beating(work: Callable[[], object], every: float, *, name: str) -> Iterator[None]:
    """Call `work` from a thread, at once and then every so many seconds, until the block ends.

    A thread beats on while the event loop is blocked.

    Example:
        >>> with beating(lambda: print("alive"), 60.0, name="beat"):
        ...     pass
        alive
    """
    over = threading.Event()

    def beat() -> None:
        while True:
            work()
            if over.wait(every):
                return

    thread = threading.Thread(target=beat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a thread that a future is awaited for; a StopIteration becomes a RuntimeError.

    A future takes no StopIteration, so who awaits it would wait for ever.

    Example:
        >>> in_thread(next, iter(()))
        Traceback (most recent call last):
        ...
        RuntimeError: a plain function raised StopIteration
    """
    try:
        return function(*args)
    except StopIteration as error:
        raise RuntimeError("a plain function raised StopIteration") from error
