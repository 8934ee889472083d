"""Keeps worker processes running: started, restarted with back-off, stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from consumerkit.concurrency import wait_for_first, wait_until_set
from consumerkit.observability.words import counted
from consumerkit.supervisor.lifeline import Channel, GroupMember
from consumerkit.supervisor.systemd import Notifier

# Exit codes of a worker process, and of the supervisor.
CLEAN = 0
FAILED = 1
NOT_STARTED = 2
GRACE_EXCEEDED = 3

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST: Final = 1.0
"""Seconds within which a further signal is the first one, told twice."""
_SAID_EVERY: Final = 30.0
"""Seconds between two log lines that say that a new process does not work yet."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartBackoff:
    """How long a process waits before it is started again.

    Args:
        first: Seconds after the first death.
        most: Seconds at most; each death in a row doubles the wait.
        reset: Seconds of life after which the next death counts as the first.
    """

    first: float = 0.5
    most: float = 30.0
    reset: float = 60.0

    def next(self, last: float | None, lived: float) -> float:
        """Return the wait after a process has lived for `lived` seconds, and before it waited for `last`.

        Example:
            >>> backoff = RestartBackoff()
            >>> [backoff.next(None, 1), backoff.next(0.5, 1), backoff.next(20, 1), backoff.next(20, 61)]
            [0.5, 1.0, 30.0, 0.5]
        """
        if last is None or lived >= self.reset:
            return self.first
        return min(last * 2, self.most)


DEFAULT_BACKOFF = RestartBackoff()


@dataclass(slots=True)
class _Child:
    """One of the N places, whichever process fills it at the time.

    Attributes:
        leave: Set where its process is to stop.
        replaced: Whether another process is then to fill the place.
        changed: Set when its process works, or has ended.
        works: Whether its process has told that it works.
        deaths: How many of its processes have ended unasked.
        channel: How to talk with its process, while it runs.
        left: The members that its last process was, which their groups may wait for still.
    """

    number: int
    since: float | None = None
    killed: bool = False
    codes: set[int] = field(default_factory=set)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    replaced: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    works: bool = False
    deaths: int = 0
    channel: Channel | None = None
    left: frozenset[GroupMember] = frozenset()


class Supervisor:
    """Keeps N worker processes running until it is told to stop.

    Each is started afresh by its command and inherits nothing but the environment. One that ends is started again after
    a back-off, for ever; only if all of them fail to *start* (exit code 2), and none has ever ended otherwise, it gives
    up: no restart mends a misdeclaration.

    SIGTERM or SIGINT to the supervisor becomes SIGTERM to each process. One that has not ended when its grace is over
    is killed; a second signal kills all at once. If the supervisor itself is killed, its processes stop by themselves.

    SIGHUP replaces the processes one after another: the next one is stopped once the new one works. Where a new one
    ends instead, the others are left as they are. At a terminal SIGHUP means that the terminal is gone: it stops all.

    A process that is killed leaves no consumer group, and Kafka would wait for it until its session has run out. So
    each process tells which members it is, and another one leaves the groups for one that has died: one that works,
    and the one that is started in its place, since either may be unable to.

    Args:
        command: What runs one worker process.
        workers: How many.
        backoff: The waits between restarts.
        grace: Seconds after which a process is killed that has not told its own grace.
        margin: Seconds beyond the grace, for what surrounds a worker: its resources, the interpreter's end.
        notifier: Told once every process works, and kept told that this one lives.
    """

    def __init__(
        self,
        command: Sequence[str],
        workers: int,
        *,
        backoff: RestartBackoff = DEFAULT_BACKOFF,
        grace: float = 30.0,
        margin: float = 5.0,
        notifier: Notifier | None = None,
    ) -> None:
        self._notifier = notifier or Notifier()
        self._command = tuple(command)
        self._children = [_Child(number) for number in range(1, workers + 1)]
        self._backoff = backoff
        self._grace = grace
        self._margin = margin
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._told = 0.0
        self._given_up = False
        self._replacing: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Run until a signal; return the exit code: 0, or 1, 2, 3 for failed, not started, grace exceeded."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled)
        if not _at_a_terminal():
            loop.add_signal_handler(signal.SIGHUP, self._replace)
        elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._signalled)
        beating = asyncio.create_task(self._notifier.beat())
        try:
            codes = await asyncio.gather(*map(self._keep, self._children))
        finally:
            beating.cancel()
            for number in (*_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)
            if self._replacing is not None:
                self._replacing.cancel()
        return NOT_STARTED if self._given_up else max(codes)

    def _signalled(self) -> None:
        if not self._stopping.is_set():
            self._told = time.monotonic()
            _log.info(
                "stopping %s: each finishes or rolls back what it has in hand, within its grace; a second SIGTERM or "
                "Ctrl-C kills them at once",
                counted(len(self._children), "worker process", "worker processes"),
            )
        elif time.monotonic() - self._told > SAME_REQUEST:
            self._at_once.set()
        self._stop_all()

    def _stop_all(self) -> None:
        self._stopping.set()
        self._notifier.stopping()
        for child in self._children:
            child.leave.set()
            child.changed.set()

    def _replace(self) -> None:
        if self._stopping.is_set():
            return
        if self._replacing is not None and not self._replacing.done():
            _log.warning("SIGHUP: the worker processes are being replaced already; it is left out")
            return
        what = counted(len(self._children), "worker process is replaced", "worker processes are replaced")
        _log.info("SIGHUP: %s one after another", what)
        self._replacing = asyncio.create_task(self._replace_each())

    async def _replace_each(self) -> None:
        for child in self._children:
            deaths = child.deaths
            child.works = False
            child.replaced = True
            child.leave.set()
            await self._until_it_works(child, deaths)
            if self._stopping.is_set():
                return
            if not child.works:
                _log.error(
                    "worker process %d does not start as it is now; the others go on as they are. Mend it, and send "
                    "SIGHUP again",
                    child.number,
                )
                return
        _log.info("every worker process is replaced, and works")

    async def _until_it_works(self, child: _Child, deaths: int) -> None:
        """Wait until the new process works, or has ended; say so from time to time."""
        began = time.monotonic()
        while not (child.works or child.deaths > deaths or self._stopping.is_set()):
            child.changed.clear()
            await wait_until_set(child.changed, _SAID_EVERY)
            if not child.changed.is_set():
                seconds = time.monotonic() - began
                _log.warning("worker process %d does not work yet, %.0f s after SIGHUP", child.number, seconds)

    async def _keep(self, child: _Child) -> int:
        """Start a process again whenever it ends; return how the last one took the stop."""
        wait = None
        while not self._stopping.is_set():
            child.replaced = False
            child.leave.clear()
            began = child.since = time.monotonic()
            code = await self._run_once(child)
            child.since = None
            if self._stopping.is_set():
                return _verdict(child, code)
            if child.replaced:
                _verdict(child, code)
                child.killed = False
                wait = None
                continue
            child.codes.add(code)
            child.deaths += 1
            child.changed.set()
            if self._hopeless():
                _log.critical("all %d worker processes failed to start; giving up", len(self._children))
                self._given_up = True
                self._stop_all()
                break
            wait = self._backoff.next(wait, time.monotonic() - began)
            _log.error("worker process %d %s; started again in %g s", child.number, _ended(code), wait)
            await wait_until_set(child.leave, wait)
        return CLEAN

    def _hopeless(self) -> bool:
        """Whether each process has failed to start, none has ever ended otherwise, and none has lasted by now."""
        settled = time.monotonic() - self._backoff.reset
        return all(
            child.codes == {NOT_STARTED} and (child.since is None or child.since > settled) for child in self._children
        )

    async def _run_once(self, child: _Child) -> int:
        """Start a process, and stop it when the time has come; return its exit code."""
        with Channel() as channel:
            try:
                process = await self._started(channel)
                _log.info("worker process %d started (pid %d)", child.number, process.pid)
                if child.left:
                    channel.tell_dead(child.left)
                child.channel, child.left = channel, frozenset()
                with _listening(child, channel, self._look_whether_all_work):
                    if not await _ends(process, child.leave, None):
                        await self._stop(child, process, channel)
                    code = await process.wait()
                channel.look()
                if code != CLEAN and not self._stopping.is_set():
                    self._pass_on(child, channel.members)
                return code
            except OSError as error:  # no memory, no more processes: as good as a death
                _log.error("worker process %d cannot be started: %s", child.number, error)
                return FAILED
            finally:
                child.channel = None

    def _pass_on(self, dead: _Child, members: frozenset[GroupMember]) -> None:
        """Have the groups left in which a dead process was: at once by another one, and by the one that follows it."""
        dead.left = members
        others = [child for child in self._children if child is not dead and child.channel is not None]
        if members and others:
            best = max(others, key=lambda child: child.works)
            assert best.channel is not None
            best.channel.tell_dead(members)

    def _look_whether_all_work(self) -> None:
        if all(child.works for child in self._children):
            self._notifier.ready()

    async def _started(self, channel: Channel) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, **channel.environment},
            pass_fds=channel.theirs,
            # Out of the terminal's process group: Ctrl-C is ours to pass on, once.
            process_group=0,
        )
        channel.close_theirs()
        return process

    async def _stop(self, child: _Child, process: asyncio.subprocess.Process, channel: Channel) -> None:
        _send(process, signal.SIGTERM)
        grace = channel.grace(self._grace)
        if not await _ends(process, self._at_once, grace + self._margin):
            reason = "at once, by a second signal" if self._at_once.is_set() else f"after its grace of {grace:g} s"
            _log.error("worker process %d is killed %s", child.number, reason)
            child.killed = True
            _send(process, signal.SIGKILL)


@contextlib.contextmanager
def _listening(child: _Child, channel: Channel, told: Callable[[], None]) -> Iterator[None]:
    """Hear what a process tells; `told` is called once it has told that it works."""
    loop = asyncio.get_running_loop()

    def hear() -> None:
        channel.look()
        if channel.works and not child.works and not child.replaced:
            child.works = True
            child.changed.set()
            told()
        if channel.over:
            loop.remove_reader(channel.read_end)

    loop.add_reader(channel.read_end, hear)
    try:
        yield
    finally:
        loop.remove_reader(channel.read_end)


def _at_a_terminal() -> bool:
    return os.isatty(0) or os.isatty(2)


async def _ends(process: asyncio.subprocess.Process, event: asyncio.Event, seconds: float | None) -> bool:
    """Wait until the process has ended, the event is set, or the time is over; return whether the process has ended."""
    ended = asyncio.ensure_future(process.wait())
    await wait_for_first(ended, event, within=seconds)
    ended.cancel()
    return process.returncode is not None


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _verdict(child: _Child, code: int) -> int:
    """Return the supervisor's exit code by how a process took the stop."""
    if child.killed:
        return GRACE_EXCEEDED
    if code in (CLEAN, -signal.SIGTERM):  # killed by SIGTERM: it was told before it could listen
        return CLEAN
    _log.error("worker process %d %s while stopping", child.number, _ended(code))
    return GRACE_EXCEEDED if code == GRACE_EXCEEDED else FAILED


def _ended(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
