"""Prints what the demo says before and after its run."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumerkit.demo.books import Check, DeadLetters
from consumerkit.demo.payments import ACCOUNTS, PaymentPlan
from consumerkit.demo.scene import DemoScene
from consumerkit.demo.workers import COUNT, TARGET

_WIDTH = 120  # columns, where the output is no terminal


class Show:
    """Writes on standard output: in colour for people, plain for pipes."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=_WIDTH)

    def opening(self, scene: DemoScene, plan: PaymentPlan, kills: int, seed: int) -> None:
        """Say what the demo will do."""
        self._say(
            f"{plan.journal.total():,} payments to {len(ACCOUNTS)} accounts, {plan.dead.total():,} poison messages and "
            f"{plan.resent:,} copies of them: {len(plan.records):,} messages (seed {seed})."
        )
        self._say(
            f"An embedded broker with Kafka's protocol on {scene.broker}, a SQLite file, {COUNT} worker processes, "
            f"SIGKILL to one of them, {kills} times.\n"
        )

    def verdict(self, checks: Sequence[Check], letters: Sequence[DeadLetters], seconds: float) -> bool:
        """Show the dead letters and the audit; return whether the books balance."""
        table = self._table("dead letters", "reason", "for example")
        for one in letters:
            table.add_row(Text(f"{one.count:,}", justify="right"), Text(one.reason, "yellow"), Text(one.example))
        self.console.print(table)
        table = self._table("", "the books", "found")
        for check in checks:
            mark = Text("ok", "bold green") if check.holds else Text("WRONG", "bold red")
            table.add_row(mark, Text(check.what), Text(check.found))
        self.console.print(table)
        balanced = all(check.holds for check in checks)
        text = (
            f"The books balance to the cent, after {seconds:.0f} seconds." if balanced else "The books do NOT balance."
        )
        self.console.print(Text(text, "bold green" if balanced else "bold red"))
        return balanced

    def next_steps(self, scene: DemoScene, *, kept: bool, stay: bool) -> None:
        """Say what to try next; each command works unchanged."""
        command = _command()
        if kept or stay:
            at = f"--database {shlex.quote(scene.url)}"
            self._heading("Look around:")
            self._command(f"{command} db stats {at}")
            self._command(f"{command} dead-letters list --limit 10 {at}")
            self._command(f"{command} dead-letters show 1 --value {at}")
        if stay:
            settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in scene.environment.items())
            self._heading(
                "Run a worker again; there is nothing left to do, and it does nothing twice (Ctrl-C ends it):"
            )
            self._command(f"{settings} CONSUMERKIT_APP={TARGET} {command} run")
            self._say("\nBroker and database stay until Ctrl-C.")
        else:
            self._heading("Keep broker and database to look around, or make it harder:")
            self._command(f"{command} demo --stay")
            self._command(f"{command} demo --payments 20000 --kills 10")
        self._say(f"\nThe handler that did it: {Path(__file__).with_name('shop.py')}")

    def _table(self, first: str, *others: str) -> Table:
        table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
        table.add_column(first)
        for name in others:
            table.add_column(name, overflow="fold")
        return table

    def _heading(self, line: str) -> None:
        self.console.print(Text(f"\n{line}", "bold"))

    def _command(self, line: str) -> None:
        # Not wrapped, so that it can be copied.
        self.console.print(Text(f"  {line}", "cyan"), soft_wrap=True)

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=not self.console.is_terminal)


def _command() -> str:
    """Return the shell command for this environment's consumerkit."""
    ours = Path(sys.executable).with_name("consumerkit")
    found = shutil.which("consumerkit")
    if found is not None and Path(found).resolve() == ours.resolve():
        return "consumerkit"
    if not ours.exists():
        return shlex.quote(sys.executable) + " -m consumerkit"
    here = Path.cwd()
    return shlex.quote(str(ours.relative_to(here) if ours.is_relative_to(here) else ours))
