"""What a worker process tells its supervisor, and what it does when the supervisor is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

_PARENT = "CONSUMERKIT_SUPERVISOR"
_CHANNEL = "CONSUMERKIT_SUPERVISOR_FD"
_WORKS = "works"
_PR_SET_PDEATHSIG = 1


class Channel:
    """The supervisor's end: a pipe on which one worker process tells how long its grace is, and that it works.

    Attributes:
        read_end: Readable when the process has told something, and once it has told all or ended.
        works: Whether the process has told that it works.
        over: Whether the process tells no more.
    """

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self.works = self.over = False
        self._grace: float | None = None
        self._open = {self.read_end, self.write_end}

    @property
    def environment(self) -> Mapping[str, str]:
        """What the process needs in its environment."""
        return {_PARENT: str(os.getpid()), _CHANNEL: str(self.write_end)}

    def close_write_end(self) -> None:
        """Leave the write end to the process."""
        self._close(self.write_end)

    def grace(self, otherwise: float) -> float:
        """Return the seconds that the process told, if it has got that far."""
        self.look()
        return otherwise if self._grace is None else self._grace

    def look(self) -> None:
        """Read what the process has told since the last look."""
        try:
            told = os.read(self.read_end, 256)
        except OSError:  # nothing yet
            return
        self.over = not told
        for word in told.decode(errors="replace").split():
            if word == _WORKS:
                self.works = True
            else:
                with contextlib.suppress(ValueError):
                    self._grace = float(word)

    def _close(self, end: int) -> None:
        if end in self._open:
            self._open.remove(end)
            os.close(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in tuple(self._open):
            self._close(end)


class Lifeline:
    """The worker process's end; without a supervisor it does nothing.

    Args:
        grace: Seconds that the process may take to stop, until `tell_grace` says otherwise.
        poll: Seconds between two looks for the supervisor.
    """

    def __init__(self, *, grace: float = 30.0, poll: float = 0.5) -> None:
        # Out of the environment: a process that the worker starts has not our parent.
        parent, channel = os.environ.pop(_PARENT, None), os.environ.pop(_CHANNEL, None)
        self._parent = None if parent is None else int(parent)
        self._channel = None if channel is None else int(channel)
        self._grace = grace
        self._poll = poll

    def hold(self) -> None:
        """Have this process stop when its supervisor is gone.

        It gets SIGTERM, so it stops as it always does; if it is still there well after its grace, it ends at once.
        """
        if self._parent is None:
            return
        # Asked of the kernel first, looked at second: a parent that died in between is seen.
        told_by_kernel = _ask_the_kernel() and os.getppid() == self._parent
        threading.Thread(
            target=self._watch, args=(self._parent, told_by_kernel), daemon=True, name="supervisor-watch"
        ).start()

    def tell_grace(self, seconds: float) -> None:
        """Tell the supervisor how long this process may take to stop."""
        self._grace = seconds
        self._tell(str(seconds))

    def tell_works(self) -> None:
        """Tell the supervisor, once, that this process works: where all are replaced, the next one's turn has come."""
        self._tell(_WORKS)
        if self._channel is not None:
            with contextlib.suppress(OSError):
                os.close(self._channel)
            self._channel = None

    def _tell(self, word: str) -> None:
        if self._channel is not None:
            with contextlib.suppress(OSError):
                os.write(self._channel, f"{word}\n".encode())

    def _watch(self, parent: int, told_by_kernel: bool) -> None:
        while os.getppid() == parent:
            time.sleep(self._poll)
        if not told_by_kernel:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._grace + 10)
        os._exit(1)


def _ask_the_kernel() -> bool:
    """Have Linux send SIGTERM when the parent dies: it works even while no Python code of ours can run."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) == 0)
    except (OSError, AttributeError):
        return False
