"""Health of a worker process: whether it lives and is ready, in a value that a supervisor reads from a file."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from consumerkit.concurrency import wait_until_set
from consumerkit.worker import Worker

BEAT: Final = 1.0
"""Seconds between two signs of life of the event loop, and between two reports to a supervisor."""
STALE: Final = 10.0
"""Seconds after which a report is too old to count."""


Beat = Callable[[float, Mapping[str, int]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """The health of one worker process or of several.

    Attributes:
        live: Whether the process works at all; otherwise it must be restarted.
        ready: Whether nothing is wrong; see `Worker.readiness`.
        findings: Sentences that each say what is wrong and what to do.

    Example:
        >>> HealthReport(live=True, ready=False, findings=("credit: the brake is on",)).ready
        False
    """

    live: bool
    ready: bool
    findings: tuple[str, ...] = ()


class Pulse:
    """Returns the health of this process's worker to any thread, also while the event loop is blocked."""

    def __init__(self, worker: Worker, *, stall_timeout: float, tell: Beat | None = None) -> None:
        """Watch a worker.

        Args:
            worker: The worker.
            stall_timeout: Seconds for which the event loop may be silent.
            tell: Called at each sign of life with its delay in seconds and the messages in flight
                by handler.
        """
        self._tell = tell
        self._worker = worker
        self._stall_timeout = stall_timeout
        self._beat = time.monotonic()

    async def run(self, over: asyncio.Event) -> None:
        """Give signs of life from the event loop, until `over` is set."""
        while not over.is_set():
            self._beat = began = time.monotonic()
            await wait_until_set(over, BEAT)
            if self._tell is not None and not over.is_set():
                self._tell(max(0.0, time.monotonic() - began - BEAT), self._worker.in_flight())

    def health(self) -> HealthReport:
        """Return the worker's health."""
        silent = time.monotonic() - self._beat
        readiness = self._worker.readiness()
        findings = list(map(str, readiness.findings))
        live = silent < self._stall_timeout
        blocked = silent > max(5.0, 3 * BEAT)
        if blocked:
            findings.insert(
                0, f"the event loop has been blocked for {silent:.0f} s; look for a handler that waits in a plain call"
            )
        return HealthReport(live=live, ready=readiness.ready and not blocked, findings=tuple(findings))


def report(directory: Path, health: HealthReport) -> None:
    """Write this process's health for its supervisor, which reads either the old or the new report, never a part."""
    written = directory / f"health-{os.getpid()}.new"
    written.write_text(json.dumps(asdict(health)))
    written.replace(directory / f"health-{os.getpid()}.json")


def together(directory: Path, workers: int) -> HealthReport:
    """Return the joint health of a supervisor's worker processes.

    It is always live, since the supervisor restarts a process that has ended. It is ready if all
    processes are.
    """
    found = [health for file in sorted(directory.glob("health-*.json")) if (health := _read(file)) is not None]
    missing = workers - len(found)
    findings = (
        [f"{missing} of {workers} worker processes do not answer; see the log for the reason"] if missing > 0 else []
    )
    findings += _once(finding for health in found for finding in health.findings)
    ready = missing <= 0 and all(health.ready for health in found)
    return HealthReport(live=True, ready=ready, findings=tuple(findings))


def _once(findings: Iterable[str]) -> list[str]:
    """Return each finding once, where several processes report it, with the longest time."""
    longest: dict[str, tuple[int, str]] = {}
    for finding in findings:
        what, _, lasting = finding.rpartition(" (for ")
        seconds = int(lasting.removesuffix(" s)")) if what and lasting.removesuffix(" s)").isdecimal() else 0
        key = what or finding
        longest[key] = max(longest.get(key, (0, finding)), (seconds, finding), key=lambda one: one[0])
    return [finding for _, finding in longest.values()]


def forget_the_dead(directory: Path) -> Iterable[int]:
    """Remove the reports of processes that have ended; return their process IDs."""
    dead = []
    for file in directory.glob("health-*.json"):
        process = int(file.stem.partition("-")[2])
        if not _runs(process):
            file.unlink(missing_ok=True)
            dead.append(process)
    return dead


def _read(file: Path) -> HealthReport | None:
    """Return a report, or None if it is too old or unreadable."""
    try:
        if time.time() - file.stat().st_mtime > STALE:
            return None
        told = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return HealthReport(live=told["live"], ready=told["ready"], findings=tuple(told["findings"]))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
