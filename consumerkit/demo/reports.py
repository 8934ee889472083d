"""Reports of the demo's worker processes: an observer that writes lines, and their reader."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Final

from consumerkit.events import Event, GroupCommitted, WorkerStarted

# A link in place of the file is not followed: other users may write to the directory.
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Reporter:
    """An observer that appends a line for each event of interest; several processes may share the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def __call__(self, event: Event) -> None:
        """Write the event's facts in one write, so that a kill leaves only whole lines."""
        if isinstance(event, GroupCommitted):
            self._write(skipped=event.duplicates + event.duplicates_of_dead, done=event.processed + event.dead)
        elif isinstance(event, WorkerStarted):
            self._write(skipped=0, done=0)

    def _write(self, **facts: int) -> None:
        if self._file is None:
            self._file = os.open(self._path, _FLAGS, 0o600)
        os.write(self._file, json.dumps({"process": os.getpid(), **facts}).encode() + b"\n")


class DemoReports:
    """Reads the reports.

    Attributes:
        processes: The worker processes that have started, newest last.
        skipped: Duplicates that they skipped; a kill between COMMIT and report loses those of one
            transaction.
        done: How many messages each process has finished.
    """

    def __init__(self, path: Path) -> None:
        self.processes: list[int] = []
        self.skipped = 0
        self.done: Counter[int] = Counter()
        self._path = path
        self._position = 0

    def read(self) -> None:
        """Read what was written since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))

    def _take(self, report: dict[str, int]) -> None:
        process = report["process"]
        if process not in self.processes:
            self.processes.append(process)
        self.skipped += report["skipped"]
        self.done[process] += report["done"] + report["skipped"]

    def alive(self) -> list[int]:
        """Return the worker processes that have started and not ended."""
        return [process for process in self.processes if _exists(process)]


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
