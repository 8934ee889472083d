"""One of a supervisor's worker processes: its state, and the verdict on its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from consumerkit.concurrency import wait_for_first
from consumerkit.supervisor.lifeline import Channel, GroupMember

# Exit codes of a worker process, and of the supervisor.
CLEAN = 0
FAILED = 1
NOT_STARTED = 2
GRACE_EXCEEDED = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartBackoff:
    """How long a process waits before it is started again.

    Args:
        first: Seconds after the first death.
        most: The longest wait in seconds; each consecutive death doubles the wait.
        reset: Seconds of life after which the next death counts as the first.
    """

    first: float = 0.5
    most: float = 30.0
    reset: float = 60.0

    def next(self, last: float | None, lived: float) -> float:
        """Return the next wait, for a process that lived `lived` seconds after a wait of `last`.

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
class Child:
    """One of the supervisor's N places, with the process that fills it at the time.

    Attributes:
        leave: Set when the process is to stop.
        replaced: Whether another process then fills the place.
        changed: Set when the process works, or has ended.
        works: Whether the process has reported that it works.
        deaths: How many processes of this place have ended without a request to stop.
        channel: The channel to the process, while it runs.
        left: The group members of the last process, for which their groups may still wait.
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


@contextlib.contextmanager
def listening(child: Child, channel: Channel, told: Callable[[], None]) -> Iterator[None]:
    """Read what a process reports, and call `told` once it has reported that it works."""
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


async def ends(process: asyncio.subprocess.Process, event: asyncio.Event, seconds: float | None) -> bool:
    """Wait until the process has ended, the event is set, or the time is over; return whether it has ended."""
    ended = asyncio.ensure_future(process.wait())
    await wait_for_first(ended, event, within=seconds)
    ended.cancel()
    return process.returncode is not None


def send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def verdict(child: Child, code: int) -> int:
    """Return the supervisor's exit code for how a process stopped."""
    if child.killed:
        return GRACE_EXCEEDED
    if code in (CLEAN, -signal.SIGTERM):  # SIGTERM killed it: the signal came before the process installed its handler
        return CLEAN
    _log.error("worker process %d %s while stopping", child.number, how_it_ended(code))
    return GRACE_EXCEEDED if code == GRACE_EXCEEDED else FAILED


def how_it_ended(code: int) -> str:
    """Return how a process ended, as the second half of a sentence."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
