"""The progress bar of long commands, on standard error and only on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Show = Callable[[int, int, str | None], None]
"""Shows how much of how much is done, under a text; None keeps the last text."""


@contextmanager
def progress_bar(what: str, *, quiet: bool = False) -> Iterator[Show | None]:
    """Show a bar until the block ends; yield None if `quiet`, or if standard error is no terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, words: bar.update(task, completed=done, total=total, description=words)


class Counted:
    """Adds up the work that is done, and shows the sum.

    Args:
        show: Shows the sum; None shows nothing.
        total: The amount of work.
    """

    def __init__(self, show: Show | None, total: int) -> None:
        self._show = show
        self._total = total
        self._done = 0

    def add(self, count: int) -> None:
        """Add the work that was done since the last call."""
        self._done += count
        if self._show is not None:
            self._show(self._done, self._total, None)
