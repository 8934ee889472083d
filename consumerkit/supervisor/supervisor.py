"""Keeps worker processes running: started, restarted with back-off, stopped together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from consumerkit.concurrency import wait_until_set
from consumerkit.observability.words import counted
from consumerkit.supervisor.child import (
    CLEAN,
    DEFAULT_BACKOFF,
    FAILED,
    NOT_STARTED,
    Child,
    RestartBackoff,
    ends,
    how_it_ended,
    listening,
    send,
    verdict,
)
from consumerkit.supervisor.lifeline import Channel, GroupMember
from consumerkit.supervisor.replacement import Replacement
from consumerkit.supervisor.systemd import Notifier

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST: Final = 1.0
"""Seconds within which a second signal counts as a copy of the first."""
_log = logging.getLogger(__name__)


class Supervisor:
    """Keeps N worker processes running until a signal stops it.

    Each process is started by the command and inherits only the environment. A process that ends is
    started again after a back-off, without limit. The supervisor gives up only if all processes
    fail to *start* (exit code 2) and none has ever ended otherwise: a restart does not correct a
    wrong declaration.

    On SIGTERM or SIGINT the supervisor sends SIGTERM to each process. It kills a process that has
    not ended when its grace is over; a second signal kills all at once. If the supervisor itself is
    killed, its processes stop by themselves.

    SIGHUP replaces the processes one after another: the next one stops once the new one works.
    Where a new process ends instead, the others stay as they are. At a terminal SIGHUP means that
    the terminal is gone, and stops all processes.

    With `changes` the supervisor replaces the processes in the same way whenever their code has
    changed; a further change starts the replacement again. A process that cannot start is started
    again at the next change, and the supervisor never gives up.

    A killed process does not leave its consumer groups, and Kafka would wait for it until its
    session times out. So each process reports its group members, and other processes leave the
    groups for a dead one. Both a working process and the one that replaces the dead process do so,
    since either may fail.

    Args:
        command: The command that runs one worker process.
        workers: The number of processes.
        backoff: The waits between restarts.
        grace: Seconds after which a stopping process is killed, where it has not sent its own
            grace.
        margin: Seconds beyond the grace, for resources and for the interpreter's end.
        notifier: Tells systemd once every process works, and that the supervisor lives.
        changes: Yields a short text whenever the processes' code has changed; for development.
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
        changes: AsyncIterator[str] | None = None,
    ) -> None:
        self._notifier = notifier or Notifier()
        self._command = tuple(command)
        self._children = [Child(number) for number in range(1, workers + 1)]
        self._backoff = backoff
        self._grace = grace
        self._margin = margin
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._told = 0.0
        self._given_up = False
        self._changes = changes
        self._replacement = Replacement(self._children, self._stopping)

    async def run(self) -> int:
        """Run until a signal; return the exit code: 0, or 1, 2, 3 for failed, not started, grace exceeded."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled)
        if not _at_a_terminal():
            loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._signalled)
        beside = [asyncio.create_task(self._notifier.beat())]
        if self._changes is not None:
            beside.append(asyncio.create_task(self._follow(self._changes)))
        try:
            codes = await asyncio.gather(*map(self._keep, self._children))
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            for number in (*_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)
            self._replacement.cancel()
        return NOT_STARTED if self._given_up else max(codes)

    def _signalled(self) -> None:
        if not self._stopping.is_set():
            self._told = time.monotonic()
            _log.info(
                "stopping %s: each finishes or rolls back its batches within its grace; a second SIGTERM or Ctrl-C "
                "kills them at once",
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

    def _hung_up(self) -> None:
        if self._stopping.is_set():
            return
        if self._replacement.is_under_way:
            _log.warning("SIGHUP: the worker processes are being replaced already; this signal is ignored")
            return
        self._replacement.begin("SIGHUP", "Mend it, and send SIGHUP again")

    async def _follow(self, changes: AsyncIterator[str]) -> None:
        """Replace the processes at each change of their code, also during a replacement."""
        try:
            async for change in changes:
                if not self._stopping.is_set():
                    self._replacement.begin(change)
        except Exception as error:  # noqa: BLE001 - after any error changes go unnoticed, so the supervisor stops
            _log.critical("changes of Python files cannot be followed; stopping. %s", error)
            self._given_up = True
            self._stop_all()

    async def _keep(self, child: Child) -> int:
        """Start a process again whenever it ends; return the exit code for how the last one stopped."""
        wait = None
        while not self._stopping.is_set():
            child.replaced = False
            child.leave.clear()
            began = child.since = time.monotonic()
            code = await self._run_once(child)
            child.since = None
            if self._stopping.is_set():
                return verdict(child, code)
            if child.replaced:
                verdict(child, code)
                child.killed = False
                wait = None
                continue
            child.codes.add(code)
            child.deaths += 1
            child.changed.set()
            if self._changes is not None and code == NOT_STARTED:
                _log.error(
                    "worker process %d could not start; the next change of a Python file starts it again", child.number
                )
                await child.leave.wait()
                continue
            if self._hopeless():
                _log.critical("all %d worker processes failed to start; giving up", len(self._children))
                self._given_up = True
                self._stop_all()
                break
            wait = self._backoff.next(wait, time.monotonic() - began)
            _log.error("worker process %d %s; started again in %g s", child.number, how_it_ended(code), wait)
            await wait_until_set(child.leave, wait)
        return CLEAN

    def _hopeless(self) -> bool:
        """Whether each process has failed to start, none has ever ended otherwise, and none has run for long."""
        settled = time.monotonic() - self._backoff.reset
        return all(
            child.codes == {NOT_STARTED} and (child.since is None or child.since > settled) for child in self._children
        )

    async def _run_once(self, child: Child) -> int:
        """Start a process, and stop it once `child.leave` is set; return its exit code."""
        with Channel() as channel:
            try:
                process = await self._started(channel)
                _log.info("worker process %d started (pid %d)", child.number, process.pid)
                if child.left:
                    channel.tell_dead(child.left)
                child.channel, child.left = channel, frozenset()
                with listening(child, channel, self._look_whether_all_work):
                    if not await ends(process, child.leave, None):
                        await self._stop(child, process, channel)
                    code = await process.wait()
                channel.look()
                if code != CLEAN and not self._stopping.is_set():
                    self._pass_on(child, channel.members)
                return code
            except OSError as error:  # no memory, or too many processes: it counts as a death
                _log.error("worker process %d cannot be started: %s", child.number, error)
                return FAILED
            finally:
                child.channel = None

    def _pass_on(self, dead: Child, members: frozenset[GroupMember]) -> None:
        """Let another process leave a dead process's groups at once, and its replacement too."""
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
            # Outside the terminal's process group: the supervisor passes Ctrl-C on, once.
            process_group=0,
        )
        channel.close_theirs()
        return process

    async def _stop(self, child: Child, process: asyncio.subprocess.Process, channel: Channel) -> None:
        send(process, signal.SIGTERM)
        grace = channel.grace(self._grace)
        if not await ends(process, self._at_once, grace + self._margin):
            reason = "at once, by a second signal" if self._at_once.is_set() else f"after its grace of {grace:g} s"
            _log.error("worker process %d is killed %s", child.number, reason)
            child.killed = True
            send(process, signal.SIGKILL)


def _at_a_terminal() -> bool:
    return os.isatty(0) or os.isatty(2)
