"""`make shop`: orders through the shop, with kills and faults, and then the books.

python -m tests.shop [--orders N] [--kills N] [--seed N]
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.services import KafkaServer, PostgresServer, ServiceError
from tests.shop.run import Plan, Result, Run


def main() -> int:
    """Run it; 0 where the books are right, 1 where they are not, 2 where a server is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.shop", description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=200, help="orders; each is clicked for five times")
    parser.add_argument("--kills", type=int, default=6, help="processes killed with SIGKILL, anywhere")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000, help="of all that is drawn")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is ended
    plan = Plan(given.orders, given.kills, given.seed)
    console = Console(width=None if sys.stdout.isatty() else 120)
    directory = Path(tempfile.mkdtemp(prefix="consumerkit-shop-"))
    try:
        kafka, postgres = KafkaServer.find_or_start(), PostgresServer.find_or_start()
    except ServiceError as error:
        print(f"shop: {error}", file=sys.stderr)
        return 2
    with kafka, postgres:
        console.print(f"{plan.orders:,} orders, five clicks each; {plan.kills} kills; seed {plan.seed}")
        database = postgres.create_database()
        try:
            result = _watched(console, plan, postgres.url(database), kafka, directory)
        except KeyboardInterrupt:
            console.print(f"interrupted; logs: {directory}")
            return 130
        except AssertionError as error:
            console.print(f"FAILED: {error}", style="bold red")
            console.print(f"logs: {directory}; again: make shop {_again(plan)}")
            return 1
    _show(console, plan, result)
    if not result.is_well:
        console.print(f"logs: {directory}; again: make shop {_again(plan)}", style="bold red")
    return 0 if result.is_well else 1


def _again(plan: Plan) -> str:
    return f"ORDERS={plan.orders} KILLS={plan.kills} SEED={plan.seed}"


def _watched(console: Console, plan: Plan, database: str, kafka: KafkaServer, directory: Path) -> Result:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[killed]} killed"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        placed = progress.add_task("placed ", total=plan.orders, killed=0)
        settled = progress.add_task("settled", total=plan.orders, killed=0)

        def tell(orders: int, done: int, killed: int) -> None:
            progress.update(placed, completed=orders, killed=killed)
            progress.update(settled, completed=done, killed=killed)

        return Run(plan, database, kafka, directory, tell).play()


def _show(console: Console, plan: Plan, result: Result) -> None:
    table = Table(title="The books", title_justify="left")
    for name in ("", "checked", "found"):
        table.add_column(name)
    for line in result.lines:
        wrong = f"; wrong: {', '.join(line.wrong[:3])}" if line.wrong else ""
        table.add_row("✕" if line.wrong else "✓", line.what, line.found + wrong, style="red" if line.wrong else None)
    console.print(table)
    killed = ", ".join(f"{name} {count}" for name, count in sorted(result.killed.items()))
    faults = ", ".join(f"{name} {count}" for name, count in sorted(result.faults.items()))
    console.print(f"killed: {killed or 'none'}")
    console.print(f"faults outside: {faults or 'none'}; refunds: {result.refunds}")
    rate = plan.orders / result.seconds
    console.print(
        f"{result.requests:,} requests for {plan.orders * 5:,} clicks; {result.seconds:.1f} s, {rate:.1f} orders/s"
    )
    console.print("The books are right." if result.is_well else "The books are WRONG.", style="bold")


if __name__ == "__main__":
    sys.exit(main())
