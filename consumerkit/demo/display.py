"""Shows the demo's progress: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_EVERY = 2.0  # seconds between plain lines
_BAR = 40


@dataclass(frozen=True)
class Tally:
    """The demo's progress.

    Attributes:
        total: Messages to send, copies and poison included.
        distinct: Messages that must become a journal entry or a dead letter.
        produced: Messages that the broker has.
        processed: Payments in the journal.
        skipped: Copies that left no trace.
        dead: Dead letters.
        kills: Worker processes killed.
        alive: Worker processes at work.
    """

    total: int
    distinct: int
    produced: int = 0
    processed: int = 0
    skipped: int = 0
    dead: int = 0
    kills: int = 0
    alive: int = 0


class Display:
    """Shows the current tally, and prints what happens in between.

    Args:
        console: The console to print to.
        tally: The first one.
    """

    def __init__(self, console: Console, tally: Tally) -> None:
        self._console = console
        self._began = time.monotonic()
        self._shown_at = self._began
        self._shown = tally
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(self._panel(tally), console=console, refresh_per_second=10)

    def update(self, tally: Tally) -> None:
        """Show a tally."""
        if self._live is not None:
            self._live.update(self._panel(tally))
        elif tally != self._shown and time.monotonic() - self._shown_at >= _EVERY:
            self._print(tally)
        self._shown = tally

    def tell(self, line: str) -> None:
        """Print a line about something that happened."""
        self._console.print(Text(f"{self._seconds:5.1f} s  {line}"))

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _print(self, tally: Tally) -> None:
        self._shown_at = time.monotonic()
        self.tell(
            f"produced {tally.produced:,} of {tally.total:,}, processed {tally.processed:,}, "
            f"duplicates skipped {tally.skipped:,}, dead letters {tally.dead:,}, kills {tally.kills}, "
            f"workers alive {tally.alive}"
        )

    def _panel(self, tally: Tally) -> Panel:
        bars = Table.grid(padding=(0, 2))
        done = tally.processed + tally.dead
        for name, number, total in (("produced", tally.produced, tally.total), ("done with", done, tally.distinct)):
            bar = ProgressBar(total, number, width=_BAR, complete_style="cyan", finished_style="green")
            bars.add_row(name, bar, f"{number:,} of {total:,}")
        facts = Table.grid(padding=(0, 2))
        facts.add_row("payments processed", Text(f"{tally.processed:,}", "bold green"))
        facts.add_row(
            "duplicates skipped",
            Text(f"{tally.skipped:,}", "bold cyan"),
            "copies and redeliveries",
        )
        facts.add_row("dead letters", Text(f"{tally.dead:,}", "bold yellow"))
        facts.add_row("workers killed", Text(f"{tally.kills}", "bold red"))
        facts.add_row(
            "workers alive", Text("● " * tally.alive or "none", "bold green" if tally.alive > 1 else "bold red")
        )
        return Panel(
            Group(bars, Text(), facts), title=f"consumerkit demo  {self._seconds:.0f} s", expand=False, padding=(1, 2)
        )

    def __enter__(self) -> Self:
        self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is None:
            self._print(self._shown)
        self._context.__exit__(kind, error, trace)

    @property
    def _context(self) -> AbstractContextManager[object]:
        return self._live or nullcontext()
