"""The progress bar of a backfill, on standard error if that is a terminal."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """Shows how many of how many rows are done; shows nothing if standard error is no terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self.started = False

    def start(self, done: int, total: int) -> None:
        """Show the bar."""
        self.started = True
        self._progress = _progress()
        self._task = self._progress.add_task(self._name, completed=done, total=total)
        self._progress.start()
        # After a loop that ends early, the terminal gets its cursor back when the iterator is
        # freed.
        weakref.finalize(self, self._progress.stop)

    def advance(self, rows: int) -> None:
        """Show this many more rows as done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, rows)
            self._progress.refresh()

    def stop(self) -> None:
        """Stop the bar where it is."""
        if self._progress is not None:
            self._progress.stop()


def is_watched() -> bool:
    """Tell whether standard error is a terminal."""
    from rich.console import Console

    return Console(stderr=True).is_terminal


def _progress() -> Progress:
    # Imported only when a bar is shown: the import takes as long as that of all consumerkit.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), auto_refresh=False)
