"""`python -m benchmarks`: prepare, run the rounds in turn, check the rows, print and keep the result."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from benchmarks import report
from benchmarks.meter import Measured
from benchmarks.round import PLACES
from benchmarks.stage import BY_HAND, ROOT, Stage
from tests.services import KafkaServer, PostgresServer, ServiceError


class Size(NamedTuple):
    """How much is measured: messages of a slow competitor, of the bare loop per message, of one that groups."""

    faststream: int
    bare_message: int
    group: int
    rows: int
    rounds: int

    def of(self, name: str) -> tuple[int, int]:
        """Return the messages to warm up with and to measure."""
        measured = {"faststream": self.faststream, "bare-message": self.bare_message}.get(name, self.group)
        return max(1, measured // 10), measured


FULL = Size(faststream=400, bare_message=2_000, group=30_000, rows=1_000_000, rounds=5)
QUICK = Size(faststream=20, bare_message=50, group=2_000, rows=1_000, rounds=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the process's exit status."""
    options = _parsed(arguments)
    size = (QUICK if options.quick else FULL)._replace(**({"rounds": options.rounds} if options.rounds else {}))
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        with ExitStack() as stack:
            kafka = stack.enter_context(KafkaServer.find_or_start())
            postgres = stack.enter_context(PostgresServer.find_or_start())
            result = _measure(kafka, postgres, size, options, console)
    except ServiceError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    report.show(console, result)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
        console.print(f"written to {options.output}")
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few messages, to see that everything runs")
    parser.add_argument("--rounds", type=int, help="rounds of each competitor")
    parser.add_argument("--only", nargs="+", choices=PLACES, default=list(PLACES), help="these competitors alone")
    parser.add_argument("--lanes", nargs="+", type=int, default=[0], help="consumerkit with each `concurrency`")
    parser.add_argument("--output", type=Path, help="where the result is written as JSON")
    options = parser.parse_args(arguments)
    if options.output is None and not options.quick and options.only == list(PLACES) and options.lanes == [0]:
        options.output = ROOT / "benchmarks" / "results" / "latest.json"
    return options


def _measure(
    kafka: KafkaServer, postgres: PostgresServer, size: Size, options: argparse.Namespace, console: Console
) -> report.Result:
    entrants = _entrants(options)
    stage = Stage(kafka, postgres, size.rows)
    stage.require_durability()
    rounds: list[dict[str, Measured]] = []
    load_before = report.load()
    try:
        with console.status("filling topic and ledgers"):
            # As much again as is measured, since what was fetched beyond it is handled too.
            stage.fill_topic(size.rounds * size.group * 3 // 2 + 10_000)
            for name, _, _ in entrants:
                stage.make_database(name, by_hand=name in BY_HAND)
        for number in range(size.rounds):
            measured: dict[str, Measured] = {}
            for name, place, lanes in entrants:
                measured[name] = stage.run(name, place, *size.of(place), lanes)
                told = measured[name]
                console.print(f"round {number + 1}: {name:14} {told.messages / told.seconds:9,.0f} messages/s")
            rounds.append(measured)
        processed = {name: stage.check(name) for name, _, _ in entrants}
    finally:
        stage.close()
    return report.result(rounds, processed, stage, size._asdict(), load_before)


def _entrants(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Return name, place and lanes of each competitor."""
    return [
        (f"{place}-{lanes}" if lanes else place, place, lanes)
        for place in options.only
        for lanes in ([0] if place in BY_HAND else options.lanes)
    ]


if __name__ == "__main__":
    sys.exit(main())
