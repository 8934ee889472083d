"""`consumerkit db prune`: makes the ledger forget now, and shows what prevents it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final

import typer
from sqlalchemy.orm import Session

from consumerkit.cli.composed import placed
from consumerkit.cli.database import Opened, TablesPlace, opened
from consumerkit.cli.json_options import JsonHandlersOption
from consumerkit.cli.output import moment, print_json, print_table, say
from consumerkit.cli.progress import Counted, progress_bar
from consumerkit.errors import ConfigurationError
from consumerkit.events import Announcer
from consumerkit.maintenance.expirer import Expired, Expiry, Unsent
from consumerkit.maintenance.pruner import forget
from consumerkit.policies.duration import DAY
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage import consumers
from consumerkit.storage import schema as our_schema
from consumerkit.storage.database import Run
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.maintenance.expiry import ExpireStatements
from consumerkit.storage.maintenance.pruning import PrunePlan, PruneStatements
from consumerkit.storage.tables import Tables
from consumerkit.worker.terms import terms_of

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
# What is counted of each handler: its heading, and the heading in a dry run.
_ENDED: Final = {
    "decided": ("decided: payloads erased", "decided: payloads to erase"),
    "dead": ("undecided: payloads erased", "undecided: payloads to erase"),
    "parked": ("parked: expired", "parked: to expire"),
}
LONGEST: Final = 100 * 365 * DAY
"""The longest span that a command takes, in seconds: all databases can compute with a time that long ago."""
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


@placed
def prune(
    where: TablesPlace,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN", help="The age, such as 12h or 7d.", show_default="the worker's retention, else 7d"
        ),
    ] = None,
    handler: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this handler; can be repeated.", show_default=False),
    ] = None,
    unpositioned: Annotated[
        bool,
        typer.Option("--unpositioned", help="Also prune handlers that have no position here, by age alone."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only; change nothing.")] = False,
    as_json: JsonHandlersOption = False,
) -> None:
    """Delete old ledger rows; end messages that wait for too long.

    It works in batches, on all handlers in the database. It never forgets a message that is parked, is dead or was
    processed since its partition's position last moved. With a target, the worker's payload_retention applies to its
    handlers and, without --handler, to the outbox. Workers do the same by themselves.
    """
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
        ConfigurationError: The text is no such span.

    Example:
        >>> seconds_in("12h")
        43200.0
    """
    found = _SPAN.fullmatch(span.strip())
    seconds = 0.0 if found is None else float(found[1]) * _UNITS[found[2]]
    if not 0 < seconds <= LONGEST:
        raise ConfigurationError(
            f"{shown_word(span)} is no span up to a hundred years; write a number above 0 and s, m, h or d, such as 7d"
        )
    return seconds


async def _prune(
    where: TablesPlace, older_than: float | None, handlers: list[str] | None, *, unpositioned: bool, dry_run: bool
) -> list[dict[str, Any]]:
    async with opened(where) as found:
        await found.run(our_schema.check)
        await found.run(lambda session, tables: _check_names(session, tables, handlers))
        seconds = older_than if older_than is not None else _retention_of(found)
        pruning = PruneStatements(found.tables, dialect_for(found.database.dialect_name, found.tables))
        run = runner(found)
        plans: list[PrunePlan] = await run(
            lambda session: pruning.plans(session, seconds, handlers, unpositioned=unpositioned)
        )
        expiry = _expiry(found, run, handlers)
        counts = [await run(partial(pruning.count, plan=plan)) for plan in plans]
        if dry_run:
            told = [_told(plan, count, complete=True) for plan, count in zip(plans, counts, strict=True)]
            if expiry is not None:
                _tell(told, await expiry.counted(), None if handlers else await expiry.count_unsent())
            return told
        told = []
        with progress_bar("forgetting") as show:
            forgotten = Counted(show, sum(counts))
            for plan in plans:
                done = await forget(run, pruning, plan, tell=forgotten.add, waits=True)
                told.append(_told(plan, done.count, complete=done.complete))
        if expiry is not None:
            _tell(told, await expiry.turn(), None if handlers else await expiry.unsent())
        return told


def _expiry(found: Opened, run: Run, handlers: list[str] | None) -> Expiry | None:
    """Return the expiry with the settings of a target's worker; None without a target, as its terms are unknown."""
    worker = found.worker
    if worker is None:
        return None
    terms = [one for one in terms_of(worker.declarations) if handlers is None or one.name in handlers]
    guard = partial(worker.dialect.relay_guard, found.database.location)
    expiring = ExpireStatements(found.tables, worker.dialect)
    return Expiry(run, expiring, worker.payload_retention, terms, guard, Announcer())


def _tell(told: list[dict[str, Any]], expired: list[Expired], unsent: Unsent | None) -> None:
    """Add the ended messages to each handler's row, and a row for the outbox."""
    by_name = {one["handler"]: one for one in told}
    for one in expired:
        ended = {"decided": one.decided, "dead": one.dead, "parked": one.parked, "skipped": list(one.skipped)}
        by_name[one.handler]["ended"] = ended
    if unsent is not None:
        told.append({"handler": "", "outbox": unsent.count, "complete": unsent.complete})


def _retention_of(found: Opened) -> float:
    if found.worker is None:
        return 7 * DAY
    if found.worker.retention is None:
        raise ConfigurationError(
            "this worker's retention is None: it forgets nothing; give --older-than if you mean to"
        )
    return found.worker.retention


def runner(found: Opened) -> Run:
    """Return a function that runs work in its own transaction."""

    async def run(work: Callable[[Session], Any]) -> Any:
        return await found.run(lambda session, _tables: work(session))

    return run


def _check_names(session: Session, tables: Tables, handlers: list[str] | None) -> None:
    known = consumers.names(session.connection(), tables)
    for name in handlers or ():
        if name not in known:
            raise ConfigurationError(consumers.unknown(name, known))


def _told(plan: PrunePlan, count: int, *, complete: bool) -> dict[str, Any]:
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
    handlers = [one for one in told if one["handler"]]
    _print_forgotten(handlers, dry_run=dry_run)
    ended = [(one["handler"], *[one["ended"][name] for name in _ENDED]) for one in handlers if "ended" in one]
    if ended:
        say("")
        print_table(("handler", *(titles[dry_run] for titles in _ENDED.values())), ended)
    for one in handlers:
        for line in _ways_out(one):
            say(line)
    for one in told[len(handlers) :]:
        say(f"outbox: {one['outbox']} unsent messages {'would be given up' if dry_run else 'given up'}")
        if not one["complete"]:
            say("outbox: a relay was sending all the time; run the command again, or leave it to the workers")


def _print_forgotten(told: list[dict[str, Any]], *, dry_run: bool) -> None:
    print_table(
        ("handler", "would be forgotten" if dry_run else "forgotten", "processed before", "held back by"),
        [(one["handler"], one["forgotten"], one["processed_before"] or "(nothing yet)", _holders(one)) for one in told],
    )


def _holders(one: dict[str, Any]) -> str:
    if not one["held_back_by"]:
        return "" if one["positioned"] or one["processed_before"] else "no position is known"
    first, *more = one["held_back_by"]
    return f"{first['topic']}[{first['partition']}]" + (f" and {len(more)} more" if more else "")


def _ways_out(one: dict[str, Any]) -> list[str]:
    name = one["handler"]
    lines = []
    for held in one["held_back_by"]:
        since = "no message of it is finished" if held["since"] is None else f"since {moment(held['since'])}"
        lines.append(
            f"{name}: {held['topic']}[{held['partition']}] has not moved ({since}), and a restart delivers again "
            f"what was processed since; run the handler until it catches up, or use consumerkit skip"
        )
    if not one["positioned"] and one["processed_before"] is None:
        lines.append(f"{name}: its position is not known; start it once, or give --unpositioned if it never runs again")
    if not one["complete"]:
        lines.append(
            f"{name}: a partition's row was in use all the time, or its position moved back; run the command again"
        )
    lines.extend(
        f"{name}: {partition} was in use all the time, or one of its payloads cannot be unsealed; run the command again"
        for partition in one.get("ended", {}).get("skipped", ())
    )
    return lines
