"""Handles SIGTERM and Ctrl-C in a worker process, and makes sure that the process ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

from consumerkit.supervisor import SAME_REQUEST, Notifier
from consumerkit.worker import Worker

_log = logging.getLogger(__name__)


def say_stopping(loaded: Sequence[Worker], notifier: Notifier) -> None:
    """Log what the stop waits for, from a thread: the loop may be blocked, and the signal may interrupt logging."""
    notifier.stopping()
    if not loaded:
        return  # the process ends silently, as other programs do
    what = loaded[0].stopping()
    again = "a second SIGTERM or Ctrl-C ends the process at once"
    threading.Thread(target=_log.info, args=("%s; %s", what, again), daemon=True, name="say-stopping").start()


def listen(stopping: asyncio.Event, say: Callable[[], None]) -> None:
    """Make the first signal stop the worker, and a second one end the process.

    A signal to a whole process group, as from Ctrl-C or systemd, reaches a worker twice: directly
    and through its supervisor. A second signal shortly after the first therefore counts as the same
    request.

    The signal handlers raise nothing: an exception could surface anywhere within a transaction.
    They are plain handlers, not the loop's: a second signal ends the process even while the loop is
    blocked.
    """
    loop = asyncio.get_running_loop()
    # A closed terminal sends SIGHUP; a caller that ignores it, such as nohup, wants the process to
    # stay.
    heard = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if heard else (signal.SIGTERM, signal.SIGINT)

    began = 0.0

    def second(number: int, _frame: object) -> None:
        if time.monotonic() - began > SAME_REQUEST:
            os._exit(128 + number)

    def first(_number: int, _frame: object) -> None:
        nonlocal began
        began = time.monotonic()
        for number in numbers:
            signal.signal(number, second)
        say()
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the process ends too
            loop.call_soon_threadsafe(stopping.set)

    for number in numbers:
        signal.signal(number, first)


def exit_within(seconds: float, code: int) -> None:
    """End the process after this time, even if the interpreter's own end hangs."""

    def wait() -> None:
        time.sleep(seconds)
        logging.shutdown()
        os._exit(code)

    threading.Thread(target=wait, daemon=True, name="exit-deadline").start()
