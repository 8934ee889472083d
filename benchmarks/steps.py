"""`python -m benchmarks.steps`: what a step costs, beside hand-written calls without a memo.

Each message needs a call of 50 ms to another service, and adds one row. A loop calls for one message after another; a
second loop calls for 500 at once with `asyncio.gather`; consumerkit calls in a step, with its default limit of 100
calls at once and with a limit of 500, and for comparison runs the same handler without the call. Broker, topic,
database and the check at the end are those of `python -m benchmarks`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.meter import Measured
from benchmarks.round import STEP_PLACES
from benchmarks.stage import BY_HAND, Stage
from tests.services import KafkaServer, PostgresServer, ServiceError

LABELS: Final = {
    "one-by-one": "loop, one call after another",
    "gather": "loop, 500 calls by gather, no memo",
    "steps": "consumerkit, a step, 100 at once",
    "steps-at-once": "consumerkit, a step, 500 at once",
    "without-steps": "consumerkit, no call",
}
SLOW: Final = ("one-by-one",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few messages, to see that everything runs")
    parser.add_argument("--rounds", type=int, help="rounds of each competitor")
    parser.add_argument("--output", type=Path, help="where the result is written as JSON")
    options = parser.parse_args(arguments)
    many, few, rows = (1_000, 10, 1_000) if options.quick else (10_000, 100, 1_000_000)
    rounds = options.rounds or (1 if options.quick else 5)
    try:
        with ExitStack() as stack:
            kafka = stack.enter_context(KafkaServer.find_or_start())
            postgres = stack.enter_context(PostgresServer.find_or_start())
            told = measure(Stage(kafka, postgres, rows), rounds, many, few)
    except ServiceError as error:
        print(f"benchmarks.steps: {error}", file=sys.stderr)
        return 1
    show(Console(width=None if sys.stdout.isatty() else 120), told)
    if options.output:
        options.output.write_text(json.dumps(told, indent=2) + "\n")
    return 0


def measure(stage: Stage, rounds: int, many: int, few: int) -> report.Result:
    """Run the rounds in turn, check the rows, and return what was measured."""
    stage.require_durability()
    before, found = report.load(), []
    try:
        stage.fill_topic(rounds * many * 3 // 2 + 10_000)
        for name in STEP_PLACES:
            stage.make_database(name, by_hand=name in BY_HAND)
        for number in range(rounds):
            measured = {}
            for name in STEP_PLACES:
                messages = few if name in SLOW else many
                measured[name] = one = stage.run(name, name, max(1, messages // 10), messages)
                cpu = one.cpu_seconds / one.messages * 1e6
                print(
                    f"round {number + 1}: {name:14} {one.messages / one.seconds:9,.0f} messages/s, {cpu:6,.0f} µs CPU"
                )
            found.append(measured)
        processed = {name: stage.check(name) for name in STEP_PLACES}
    finally:
        stage.close()
    return {
        "rates": _each(found, _rate),
        "cpu_microseconds_per_message": _each(found, _cpu),
        "messages_per_commit": _each(found, lambda one: one.messages / one.commits),
        "cpu_to_gather": _each(found, _cpu, "gather"),
        "rate_to_one_by_one": _each(found, _rate, "one-by-one"),
        "processed_exactly_once": processed,
        "rounds": [{name: one._asdict() for name, one in each.items()} for each in found],
        "versions": report.versions(stage),
        "machine": {**report.machine(), "load_before": before, "load_after": report.load()},
    }


def _rate(one: Measured) -> float:
    return one.messages / one.seconds


def _cpu(one: Measured) -> float:
    return one.cpu_seconds / one.messages * 1e6


def _each(
    found: Sequence[dict[str, Measured]], figure: Callable[[Measured], float], base: str | None = None
) -> dict[str, dict[str, float]]:
    """Return the spread of a figure for each competitor, or of its ratio to another's within the round."""
    return {
        name: report.spread([figure(one[name]) / (1.0 if base is None else figure(one[base])) for one in found])
        for name in STEP_PLACES
    }


def show(console: Console, told: report.Result) -> None:
    """Print the table."""
    table = Table(title="Calls of 50 ms, one process: median (least to most)", caption=report.caption(told))
    table.add_column("")
    for column in ("CPU µs/message", "CPU to gather", "messages/s", "rate to one by one", "messages/commit"):
        table.add_column(column, justify="right")
    for name, label in LABELS.items():
        cells = [
            _cell(told["cpu_microseconds_per_message"][name], ",.0f"),
            _cell(told["cpu_to_gather"][name], ".2f"),
            _cell(told["rates"][name], ",.0f"),
            _cell(told["rate_to_one_by_one"][name], ",.0f"),
            f"{told['messages_per_commit'][name]['median']:,.0f}",
        ]
        table.add_row(label, *cells)
    console.print(table)


def _cell(value: dict[str, float], form: str) -> str:
    return f"{value['median']:{form}} ({value['min']:{form}} to {value['max']:{form}})"


if __name__ == "__main__":
    sys.exit(main())
