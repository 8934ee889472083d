"""Named places where a test may kill, fail or hang the process.

The product has them at each transition of a message. They do nothing unless a worker is built with
`failpoints=True`; only then is the environment read:

    CONSUMERKIT_FAILPOINT=after_commit:kill            kill -9 at the first visit
    CONSUMERKIT_FAILPOINT=in_handler:kill:200,...      at the 200th visit
    CONSUMERKIT_FAILPOINT=in_handler:kill:~0.001       at each visit with this probability
    CONSUMERKIT_FAILPOINT_LOG=/path                    one line is appended for each that fires

`watched` calls a function at each of them, for tests in the same process (`consumerkit.testing`).

The technique is FreeBSD's fail(9), by way of many databases.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, cast, get_args

from consumerkit.errors import ConfigurationError

Action = Literal["kill", "raise", "hang", "exit"]

NAMES: Final = frozenset({
    "after_poll", "after_decode", "before_begin", "after_begin", "before_claim", "after_claim", "in_handler",
    "after_handler", "before_finalise", "after_finalise", "before_commit", "commit_sent", "after_commit",
    "step_started", "step_called", "step_done", "undo_started", "undo_called", "undo_done",
    "request_claimed", "request_handled", "request_committed",
    "before_mark", "after_mark", "before_offset_commit", "offset_commit_sent", "after_offset_commit",
    "before_dead_letter_commit", "after_dead_letter_commit", "before_dlq_produce", "dlq_produced_unacked", "dlq_acked",
    "in_on_revoke", "in_on_assign", "in_shutdown_drain",
})  # fmt: skip


class FailpointError(Exception):
    """The error that a failpoint with the action `raise` raises."""


@dataclass
class _Armed:
    action: Action
    at_visit: int | None
    probability: float
    visits: int = field(default=0)

    def due(self) -> bool:
        self.visits += 1
        if self.at_visit is not None:
            return self.visits == self.at_visit
        return random.random() < self.probability


_armed: dict[str, _Armed] = {}
_watcher: Callable[[str], object] | None = None


def arm(environ: Mapping[str, str] = os.environ) -> None:
    """Read the failpoints from the environment; a worker with `failpoints=True` calls this.

    Raises:
        ConfigurationError: A name or an action is unknown, or a number is invalid or out of range.
    """
    _armed.clear()
    armed = dict(map(_parsed, filter(None, environ.get("CONSUMERKIT_FAILPOINT", "").split(","))))
    _armed.update(armed)


def _parsed(item: str) -> tuple[str, _Armed]:
    name, _, rest = item.partition(":")
    action, _, when = rest.partition(":")
    try:
        visit = None if when.startswith("~") else int(when or 1)
        chance = float(when[1:]) if when.startswith("~") else 1.0
    except ValueError:
        visit, chance = 0, 0.0
    if name not in NAMES or action not in get_args(Action) or not (visit is None or visit >= 1) or not 0 < chance <= 1:
        raise ConfigurationError(
            f"CONSUMERKIT_FAILPOINT: {item!r} is not name:kill|raise|hang|exit[:n|:~p] with a known name, n >= 1 and "
            "0 < p <= 1"
        )
    return name, _Armed(cast(Action, action), visit, chance)


def reach(name: str) -> None:
    """Pass the place called `name`, and fire a failpoint that is armed there."""
    if _watcher is not None:
        _watcher(name)
    if _armed and (point := _armed.get(name)) and point.due():
        _fire(name, point.action)


def _fire(name: str, action: Action) -> None:
    if path := os.environ.get("CONSUMERKIT_FAILPOINT_LOG"):
        line = f"{name} {action} {os.getpid()} {time.time():.3f}\n".encode()
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.write(fd, line)
        os.close(fd)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "exit":
        os._exit(70)
    elif action == "hang":
        time.sleep(3600)
    raise FailpointError(name)


@contextmanager
def watched(watcher: Callable[[str], object]) -> Iterator[None]:
    """Call `watcher` with the name of each place that this process passes within the `with` block.

    What the watcher raises is raised at that place. Any thread may call it.

    Raises:
        RuntimeError: Another watcher is there already; workers of one process share the places.

    Example:
        >>> seen = []
        >>> with watched(seen.append):
        ...     reach("before_commit")
        >>> seen
        ['before_commit']
    """
    global _watcher
    if _watcher is not None:
        raise RuntimeError("the failpoints of this process are watched already; run one such test after the other")
    _watcher = watcher
    try:
        yield
    finally:
        _watcher = None
