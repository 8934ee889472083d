"""What a worker process tells its supervisor, and what it does when the supervisor is gone."""

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
    """The supervisor's end: two pipes, on which it and one worker process tell each other a JSON line each time.

    Attributes:
        read_end: Readable when the process has sent something, and once it has ended.
        works: Whether the process has reported that it works.
        over: Whether the process tells no more.
        members: Which members of consumer groups the process is.
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
        """The process's own ends."""
        return self._their_read_end, self._their_write_end

    @property
    def environment(self) -> Mapping[str, str]:
        """What the process needs in its environment."""
        return {_PARENT: str(os.getpid()), _CHANNEL: ",".join(map(str, self.theirs))}

    def close_theirs(self) -> None:
        """Leave the process's ends to it."""
        for end in self.theirs:
            self._close(end)

    def tell_dead(self, members: frozenset[GroupMember]) -> None:
        """Tell the process of members whose process has died, so that it leaves their groups for them."""
        _write(self._write_end, {"dead": sorted(members)})

    def grace(self, otherwise: float) -> float:
        """Return the grace that the process sent, if it has got that far."""
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
                with contextlib.suppress(ValueError):  # cut off in the middle of a line
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
        # Out of the environment: a process that the worker starts has not our parent.
        parent, channel = os.environ.pop(_PARENT, None), os.environ.pop(_CHANNEL, None)
        self._parent = None if parent is None else int(parent)
        self._ends = None if channel is None else [int(end) for end in channel.split(",")]
        self._writing = threading.Lock()
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
        self._tell({"grace": seconds})

    def tell_works(self) -> None:
        """Report to the supervisor that this process works: in a rolling replacement, the next one's turn has come."""
        self._tell({"works": True})

    def tell_members(self, members: frozenset[GroupMember]) -> None:
        """Report this process's members of consumer groups to the supervisor; the last report counts."""
        self._tell({"members": sorted(members)})

    def hear_of_the_dead(self, act: Callable[[frozenset[GroupMember]], None]) -> None:
        """Call `act`, in a thread, with the members of dead processes that the supervisor reports."""
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
    with contextlib.suppress(OSError):  # the other one is gone, or does not read
        os.write(end, json.dumps(what).encode() + b"\n")


def _ask_the_kernel() -> bool:
    """Have Linux send SIGTERM when the parent dies: it works even while no Python code of ours can run."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) == 0)
    except (OSError, AttributeError):
        return False
