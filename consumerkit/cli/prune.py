"""`consumerkit db prune`: have the ledger forget now, and see what keeps it from that."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy.orm import Session

from consumerkit.cli.database import Opened, Place, PrefixOption, SchemaOption, UrlOption, opened, place
from consumerkit.cli.output import moment, print_json, print_table, say
from consumerkit.cli.target import TargetArgument
from consumerkit.errors import ConfigurationError
from consumerkit.retention import DAY, forget
from consumerkit.storage import schema as our_schema
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.engines import Run
from consumerkit.storage.pruning import Plan, Pruning
from consumerkit.storage.tables import DEFAULT_PREFIX

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def prune(
    target: TargetArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN", help="Such as 12h or 7d.", show_default="the target's worker's retention, else 7d"
        ),
    ] = None,
    handler: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this handler's; can be repeated.", show_default=False),
    ] = None,
    unpositioned: Annotated[
        bool,
        typer.Option("--unpositioned", help="Also, by age alone, what handlers processed that have no position here."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count; change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per handler.")] = False,
) -> None:
    """Forget message IDs that were processed long ago.

    It works in batches, on all handlers in the database. What is parked, dead or was processed since
    a partition's position last moved is never forgotten. Workers do the same by themselves, for their own handlers.
    """
    where = place(target, database, prefix, schema)
    given = None if older_than is None else seconds_in(older_than)
    told = asyncio.run(_prune(where, given, handler, unpositioned=unpositioned, dry_run=dry_run))
    if as_json:
        print_json(told)
    elif told:
        _print(told, dry_run=dry_run)
    else:
        say("no handler has started on this database yet")


def seconds_in(span: str) -> float:
    """Return a span such as 90s, 30m, 12h or 7d in seconds.

    Raises:
        ConfigurationError: It is none.

    Example:
        >>> seconds_in("12h")
        43200.0
    """
    found = _SPAN.fullmatch(span.strip())
    if found is None or float(found[1]) == 0:
        raise ConfigurationError(f"{span!r} is no span; write a number above 0 and s, m, h or d, such as 7d")
    return float(found[1]) * _UNITS[found[2]]


async def _prune(
    where: Place, older_than: float | None, handlers: list[str] | None, *, unpositioned: bool, dry_run: bool
) -> list[dict[str, Any]]:
    async with opened(where) as found:
        await found.run(our_schema.check)
        seconds = older_than if older_than is not None else _retention_of(found)
        pruning = Pruning(found.tables, dialect_for(found.database.dialect_name, found.tables))
        run = runner(found)
        plans: list[Plan] = await run(
            lambda session: pruning.plans(session, seconds, handlers, unpositioned=unpositioned)
        )
        _check_names(handlers, plans)
        counts = [await run(partial(pruning.count, plan=plan)) for plan in plans]
        if dry_run:
            return [_told(plan, count, complete=True) for plan, count in zip(plans, counts, strict=True)]
        with _bar() as bar:
            task = bar.add_task("forgetting", total=sum(counts))
            told = []
            for plan in plans:
                done = await forget(run, pruning, plan, tell=lambda n: bar.advance(task, n), patient=True)
                told.append(_told(plan, done.count, complete=done.complete))
            return told


def _retention_of(found: Opened) -> float:
    if found.worker is None:
        return 7 * DAY
    if found.worker.retention is None:
        raise ConfigurationError(
            "this worker's retention is None: it forgets nothing; give --older-than if you mean to"
        )
    return found.worker.retention


def runner(found: Opened) -> Run:
    """Return what runs work in a transaction of its own."""

    async def run(work: Callable[[Session], Any]) -> Any:
        return await found.run(lambda session, _tables: work(session))

    return run


def _check_names(handlers: list[str] | None, plans: list[Plan]) -> None:
    for name in handlers or ():
        if name not in {plan.handler for plan in plans}:
            raise ConfigurationError(f"--handler {name!r}: no handler of this name has started on this database")


def _bar() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _told(plan: Plan, count: int, *, complete: bool) -> dict[str, Any]:
    holders = [
        {"topic": one.partition.topic, "partition": one.partition.partition, "since": one.since} for one in plan.holders
    ]
    return {
        "handler": plan.handler,
        "forgotten": count,
        "processed_before": plan.before,
        "complete": complete,
        "positioned": plan.positioned,
        "held_back_by": holders,
    }


def _print(told: list[dict[str, Any]], *, dry_run: bool) -> None:
    print_table(
        ("handler", "would be forgotten" if dry_run else "forgotten", "processed before", "held back by"),
        [
            (one["handler"], one["forgotten"], one["processed_before"] or "(nothing may go)", _holders(one))
            for one in told
        ],
    )
    for one in told:
        for line in _ways_out(one):
            say(line)


def _holders(one: dict[str, Any]) -> str:
    if not one["held_back_by"]:
        return "" if one["positioned"] or one["processed_before"] else "no position is known"
    first, *more = one["held_back_by"]
    return f"{first['topic']}[{first['partition']}]" + (f" and {len(more)} more" if more else "")


def _ways_out(one: dict[str, Any]) -> list[str]:
    name = one["handler"]
    lines = []
    for held in one["held_back_by"]:
        since = "nothing of it was ever settled" if held["since"] is None else f"since {moment(held['since'])}"
        lines.append(
            f"{name}: {held['topic']}[{held['partition']}] has not moved ({since}), and a restart would deliver again "
            "what was processed since; run the handler until it is through, or move its position on"
        )
    if not one["positioned"] and one["processed_before"] is None:
        lines.append(
            f"{name}: nothing tells how far it has come; start it once, or give --unpositioned if it is gone for good"
        )
    if not one["complete"]:
        lines.append(
            f"{name}: a partition's row was in use all the time, or its position was moved back; run this again"
        )
    return lines
