"""The pipes between a worker process and its supervisor, and the process's end when the supervisor is gone."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

_PARENT = "CONSUMERKIT_SUPERVISOR"
_CHANNEL = "CONSUMERKIT_SUPERVISOR_FD"
_PR_SET_PDEATHSIG = 1


class GroupMember(NamedTuple):
    """One member of a consumer group: the group's name, and the ID by which the group knows it."""

    group: str
    id: str


class Channel:
    """The supervisor's end of two pipes, on which it and one worker process exchange lines of JSON.

    Attributes:
        read_end: Readable when the process has sent something, and once it has ended.
        works: Whether the process has reported that it works.
        over: Whether the process sends nothing more.
        members: The members of consumer groups that the process has reported.
    """

    def __init__(self) -> None:
        self.read_end, self._their_write_end = os.pipe()
        self._their_read_end, self._write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        os.set_blocking(self._write_end, False)
        self.works = self.over = False
        self.members: frozenset[GroupMember] = frozenset()
        self._grace: float | None = None
        self._begun = b""
        self._open = {self.read_end, self._write_end, *self.theirs}

    @property
    def theirs(self) -> tuple[int, int]:
        """The process's ends of the pipes."""
        return self._their_read_end, self._their_write_end

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables that the process needs."""
        return {_PARENT: str(os.getpid()), _CHANNEL: ",".join(map(str, self.theirs))}

    def close_theirs(self) -> None:
        """Close the process's ends in this process."""
        for end in self.theirs:
            self._close(end)

    def tell_dead(self, members: frozenset[GroupMember]) -> None:
        """Report members of dead processes to the worker process, which leaves their groups for them."""
        _write(self._write_end, {"dead": sorted(members)})

    def grace(self, otherwise: float) -> float:
        """Return the grace that the process has sent, or `otherwise` if it has sent none."""
        self.look()
        return otherwise if self._grace is None else self._grace

    def look(self) -> None:
        """Read what the process has sent since the last look."""
        while not self.over:
            try:
                told = os.read(self.read_end, 65_536)
            except OSError:  # nothing more yet
                return
            self.over = not told
            *lines, self._begun = (self._begun + told).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError):  # an incomplete line
                    self._take(json.loads(line))

    def _take(self, told: Mapping[str, Any]) -> None:
        self._grace = told.get("grace", self._grace)
        self.works = self.works or "works" in told
        if "members" in told:
            self.members = frozenset(GroupMember(*one) for one in told["members"])

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
        # Removed from the environment: a process that the worker starts has another parent.
        parent, channel = os.environ.pop(_PARENT, None), os.environ.pop(_CHANNEL, None)
        self._parent = None if parent is None else int(parent)
        self._ends = None if channel is None else [int(end) for end in channel.split(",")]
        self._writing = threading.Lock()
        self._grace = grace
        self._poll = poll

    def hold(self) -> None:
        """Make this process stop when its supervisor is gone.

        The process gets SIGTERM and stops as usual. If it still runs well after its grace, it ends
        at once.
        """
        if self._parent is None:
            return
        # Ask the kernel first and look at the parent second: this notices a parent that died in
        # between.
        told_by_kernel = _ask_the_kernel() and os.getppid() == self._parent
        threading.Thread(
            target=self._watch, args=(self._parent, told_by_kernel), daemon=True, name="supervisor-watch"
        ).start()

    def tell_grace(self, seconds: float) -> None:
        """Tell the supervisor how long this process may take to stop."""
        self._grace = seconds
        self._tell({"grace": seconds})

    def tell_works(self) -> None:
        """Report to the supervisor that this process works; a rolling replacement then goes on with the next one."""
        self._tell({"works": True})

    def tell_members(self, members: frozenset[GroupMember]) -> None:
        """Report this process's members of consumer groups to the supervisor; each report replaces the last."""
        self._tell({"members": sorted(members)})

    def hear_of_the_dead(self, act: Callable[[frozenset[GroupMember]], None]) -> None:
        """Call `act` in a thread with each report of the supervisor about members of dead processes."""
        if self._ends is not None:
            threading.Thread(target=self._hear, args=(self._ends[0], act), daemon=True, name="supervisor-ear").start()

    @property
    def is_held(self) -> bool:
        """Whether there is a supervisor."""
        return self._parent is not None

    def _tell(self, what: Mapping[str, Any]) -> None:
        with self._writing:
            if self._ends is not None:
                _write(self._ends[1], what)

    def _hear(self, read_end: int, act: Callable[[frozenset[GroupMember]], None]) -> None:
        with open(read_end, closefd=False) as lines:
            for line in lines:
                act(frozenset(GroupMember(*one) for one in json.loads(line)["dead"]))

    def _watch(self, parent: int, told_by_kernel: bool) -> None:
        while os.getppid() == parent:
            time.sleep(self._poll)
        if not told_by_kernel:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._grace + 10)
        os._exit(1)


def _write(end: int, what: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the other process is gone, or does not read
        os.write(end, json.dumps(what).encode() + b"\n")


def _ask_the_kernel() -> bool:
    """Ask Linux to send SIGTERM when the parent dies: this works even while no Python code can run."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) == 0)
    except (OSError, AttributeError):
        return False
