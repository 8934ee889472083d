"""Tells systemd that the service works, stops, and lives, by the protocol of `sd_notify`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from consumerkit.concurrency import beating

_SOCKET: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = "WATCHDOG_USEC"
_PROCESS: Final = "WATCHDOG_PID"


class Notifier:
    """The service's end of systemd's socket; without systemd it does nothing.

    The socket's address is removed from the environment: a child process that writes to the socket
    would speak for the service.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop(_SOCKET, None)
        microseconds, process = os.environ.pop(_WATCHDOG, None), os.environ.pop(_PROCESS, None)
        self.watchdog: float | None = None
        """Seconds without a sign of life after which systemd restarts the service; None where it does not."""
        if microseconds and microseconds.isdecimal() and process in (None, str(os.getpid())):
            self.watchdog = int(microseconds) / 1e6 or None
        self._told_ready = False

    @property
    def listens(self) -> bool:
        """Whether systemd listens."""
        return self._address is not None

    def ready(self) -> None:
        """Tell systemd, once, that the service works: units that are ordered after it may start."""
        if not self._told_ready:
            self._told_ready = True
            self._tell("READY=1\nSTATUS=works")

    def stopping(self) -> None:
        """Tell systemd that the service stops."""
        self._tell("STOPPING=1\nSTATUS=stopping")

    @contextmanager
    def living(self, lives: Callable[[], bool]) -> Iterator[None]:
        """Give signs of life from a thread until the block ends, while `lives` returns True."""
        if not self.listens or self.watchdog is None:
            yield
            return

        def work() -> None:
            if lives():
                self._tell("WATCHDOG=1")

        with beating(work, self.watchdog / 3, name="consumerkit-systemd"):
            yield

    async def beat(self) -> None:
        """Give signs of life from the event loop, until cancelled."""
        while self.listens and self.watchdog is not None:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog / 3)

    def _tell(self, words: str) -> None:
        if self._address is None:
            return
        # A leading @ is Linux's abstract namespace.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.connect(address)
            end.sendall(words.encode())
