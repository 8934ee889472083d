"""What a worker process does on SIGTERM and Ctrl-C, and how it is sure to end."""

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
    """Tell what is awaited, from a thread: a handler may block the event loop, and a signal interrupts log lines."""
    notifier.stopping()
    if not loaded:
        return  # the process ends without a word, as others do
    what = loaded[0].stopping()
    again = "a second SIGTERM or Ctrl-C ends the process at once"
    threading.Thread(target=_log.info, args=("%s; %s", what, again), daemon=True, name="say-stopping").start()


def listen(stopping: asyncio.Event, say: Callable[[], None]) -> None:
    """Have the first signal stop the worker, and a second one end the process.

    Where a whole process group is signalled, as by Ctrl-C or systemd, a worker hears it twice: from there and from its
    supervisor. What follows at once is therefore the same request.

    Nothing is raised from a handler: an exception could surface between any two steps of a transaction. And they are
    plain handlers, not the loop's, so that a second signal ends the process even while the loop is blocked.
    """
    loop = asyncio.get_running_loop()
    # A terminal that is gone sends SIGHUP; who ignores it, as nohup does, wants the process to stay.
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
        with contextlib.suppress(RuntimeError):  # the loop has ended: so does the process
            loop.call_soon_threadsafe(stopping.set)

    for number in numbers:
        signal.signal(number, first)


def exit_within(seconds: float, code: int) -> None:
    """End the process by then, whatever holds up the interpreter's own end."""

    def wait() -> None:
        time.sleep(seconds)
        logging.shutdown()
        os._exit(code)

    threading.Thread(target=wait, daemon=True, name="exit-deadline").start()
