"""Ends a worker under test at a named place, as a kill ends its process.

A failpoint raises an error there, and from then on at every place that the worker passes: it begins
no transaction, commits no offset and sends nothing until it is stopped. Whatever it has not
committed is rolled back, as when a process dies.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Final, NamedTuple

from consumerkit.failpoints import FailpointError

IN_ORDER: Final = (
    "in_on_assign", "after_poll", "after_decode", "step_started", "step_called", "step_done",
    "before_begin", "after_begin", "before_claim", "after_claim", "in_handler", "after_handler",
    "before_finalise", "after_finalise", "before_commit", "before_dead_letter_commit",
    "after_commit", "after_dead_letter_commit", "before_mark", "after_mark",
    "before_offset_commit", "offset_commit_sent", "after_offset_commit",
    "before_dlq_produce", "dlq_produced_unacked", "dlq_acked", "undo_started", "undo_called", "undo_done",
)  # fmt: skip
"""The places at which a worker is killed, in the order of a message's life.

`commit_sent` is missing: on SQLite a COMMIT under way ends as at the place before it or after it.
"""
_POSITIONS: Final = frozenset({
    "before_mark", "after_mark", "before_offset_commit", "offset_commit_sent", "after_offset_commit",
})  # fmt: skip
_ONCE: Final = _POSITIONS | {"in_on_assign", "after_poll", "dlq_acked"}
# A dead worker passes these too: its COMMIT was on its way already, and the test itself stops it.
_SPARED: Final = frozenset({"commit_sent", "in_shutdown_drain"})


class Kill(NamedTuple):
    """The place where a worker is killed, and at its first visit or a later one."""

    at: str
    visit: int = 1

    def __str__(self) -> str:
        return self.at if self.visit == 1 else f"{self.at} (visit {self.visit})"


class Boundaries:
    """Watches the places that the worker of one run passes; `consumerkit.failpoints.watched` calls it.

    Args:
        kill: Where to end the worker; None lets it live.

    Attributes:
        visits: How often each place was passed. Marks and offsets count from the first COMMIT on:
            before it they say nothing new.
        is_dead: Whether the worker was killed.
        killed: Set when it is.
        committed: Set at the first COMMIT.
    """

    def __init__(self, kill: Kill | None = None) -> None:
        self.visits: Counter[str] = Counter()
        self.is_dead = False
        self.killed = asyncio.Event()
        self.committed = asyncio.Event()
        self._kill = kill
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        """Count a visit.

        Raises:
            FailpointError: The worker is killed here, or was killed before.
        """
        with self._lock:
            if self.is_dead:
                if name not in _SPARED:
                    raise FailpointError(name)
                return
            if name in _POSITIONS and not self.visits["after_commit"]:
                return
            self.visits[name] += 1
            if self._kill is not None and self._kill == (name, self.visits[name]):
                self.is_dead = True
                self._loop.call_soon_threadsafe(self.killed.set)
                raise FailpointError(name)
        if name == "after_commit":
            self._loop.call_soon_threadsafe(self.committed.set)

    @property
    def has_told_position(self) -> bool:
        """Whether a mark and a commit of offsets that follow a COMMIT are complete.

        A commit that was under way at the first COMMIT passes only some of these places.
        """
        return all(self.visits[name] for name in _POSITIONS)

    def revive(self) -> None:
        """Let the next worker live."""
        self.is_dead, self._kill = False, None


def kills(visits: Counter[str]) -> list[Kill]:
    """Return where to kill: at the first visit of each place that a living worker passed, and at the second.

    Example:
        >>> kills(Counter(before_commit=3, after_poll=7))
        [Kill(at='after_poll', visit=1), Kill(at='before_commit', visit=1), Kill(at='before_commit', visit=2)]
    """
    return [
        Kill(name, visit) for name in IN_ORDER for visit in range(1, min(visits[name], 1 if name in _ONCE else 2) + 1)
    ]
