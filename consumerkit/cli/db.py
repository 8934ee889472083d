"""`consumerkit db`: creates, checks, counts and prunes consumerkit's tables."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import typer
from sqlalchemy import select
from sqlalchemy.orm import Session

from consumerkit.cli.composed import placed
from consumerkit.cli.database import TablesPlace, opened
from consumerkit.cli.examples import examples
from consumerkit.cli.json_options import JsonOption
from consumerkit.cli.output import complain, print_json, print_table, say
from consumerkit.cli.prune import prune
from consumerkit.errors import StartError
from consumerkit.handlers.declaration import Declaration
from consumerkit.outcome import Outcome
from consumerkit.storage import consumers, ledger, left_behind, outbox
from consumerkit.storage import schema as our_schema
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.parking import occupancy
from consumerkit.storage.tables import Tables
from consumerkit.worker import left_behind as ways_out

_TITLES = (
    "handler",
    "processed",
    "latest",
    "parked",
    "due",
    "oldest parked",
    "held keys",
    "dead IDs",
    "dead letters by reason",
    "oldest dead",
)

_WAITING = {"undos": "steps to undo", "dead_letter_calls": "dead letters that wait for on_dead_letter"}

app = typer.Typer(no_args_is_help=True, help="Create, check, count and prune consumerkit's tables.")


@app.command(
    epilog=examples(
        "db upgrade shop.worker:worker",
        "db upgrade --database postgresql+psycopg://shop@db/shop --sql",
    )
)
@placed
def upgrade(
    where: TablesPlace,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for an empty database; change nothing.")] = False,
) -> None:
    """Create the tables, or bring them up to date. Safe to run from several places at once."""
    asyncio.run(_upgrade(where, sql=sql))


async def _upgrade(where: TablesPlace, *, sql: bool) -> None:
    async with opened(where, connect=not sql) as found:
        if sql:
            say(our_schema.upgrade_sql(found.database.dialect_name, found.tables).rstrip())
            return
        applied = await found.run(our_schema.apply)
    say(f"upgraded to revision {applied[-1]}" if applied else "up to date")


@app.command(
    epilog=examples(
        "db check shop.worker:worker",
    )
)
@placed
def check(
    where: TablesPlace,
) -> None:
    """Check that the tables exist and have the right version. Exit status 1 if not."""
    asyncio.run(_check(where))


async def _check(where: TablesPlace) -> None:
    async with opened(where) as found:
        try:
            await found.run(our_schema.check)
        except StartError as error:
            complain(error)
            raise typer.Exit(1) from None
    say("up to date")


@app.command(
    epilog=examples(
        "db stats shop.worker:worker",
        "db stats --database postgresql+psycopg://shop@db/shop --json",
    )
)
@placed
def stats(
    where: TablesPlace,
    as_json: JsonOption = False,
) -> None:
    """Count what is in the tables.

    It counts processed and parked messages and dead letters by handler, and outbox messages by topic. It also shows
    the age of the oldest one. A held key waits for a decision on a dead letter. At the end, lines name what waits for
    code that is not deployed, and the way out.

    It counts every row: this takes a while on a large ledger, and disturbs no worker.
    """
    counted = asyncio.run(_counted(where))
    if as_json:
        print_json(counted)
        return
    rows = [
        (
            name,
            one["processed"],
            one["latest"],
            *one["parked"].values(),
            one["dead"],
            _reasons(one["dead_letters"]),
            one["oldest_dead_letter"],
        )
        for name, one in counted["handlers"].items()
    ]
    if rows:
        print_table(_TITLES, rows)
    else:
        say("no handler has started on this database yet")
    say("")
    if counted["outbox"]:
        waiting = [(topic, *one.values()) for topic, one in counted["outbox"].items()]
        print_table(("outbox topic", "waiting", "oldest"), waiting)
    else:
        say("the outbox is empty")
    for column, title in _WAITING.items():
        if waiting := [(name, one[column]) for name, one in counted["handlers"].items() if one[column]]:
            say("")
            print_table(("handler", title), waiting)
    if counted["left_behind"]:
        say("")
    for one in counted["left_behind"]:
        say(f"{one['handler']}: {one['reason']}")


def _reasons(by_reason: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in by_reason.items())


async def _counted(where: TablesPlace) -> dict[str, Any]:
    async with opened(where) as found:
        declared = () if found.worker is None else found.worker.declarations
        return await found.run(partial(_count, declared=declared))


def _count(session: Session, tables: Tables, declared: Sequence[Declaration]) -> dict[str, Any]:
    our_schema.check(session, tables)
    c = tables.consumers.c
    handlers: dict[str, Any] = {
        name: {
            "processed": 0,
            "latest": None,
            "parked": {"messages": 0, "due": 0, "oldest": None, "held_keys": 0},
            "undos": 0,
            "dead_letter_calls": 0,
            "dead": 0,
            "dead_letters": {},
            "oldest_dead_letter": None,
        }
        for (name,) in session.execute(select(c.name).order_by(c.name))
    }
    for name, outcome, count, _oldest, newest in ledger.count_by_outcome(session, tables):
        if outcome == Outcome.PROCESSED:
            handlers[name] |= {"processed": count, "latest": newest}
        elif outcome == Outcome.DEAD:
            handlers[name]["dead"] = count
    for name, parked, due, oldest, held in occupancy.count_by_handler(session, tables):
        handlers[name]["parked"] = {"messages": parked, "due": due, "oldest": oldest, "held_keys": held}
    for one in left_behind.undos(session, tables):
        handlers[one.handler]["undos"] = one.rows
    for one in left_behind.calls(session, tables):
        handlers[one.handler]["dead_letter_calls"] = one.rows
    for name, reason, count, oldest in dead_letters.count_by_reason(session, tables):
        handlers[name]["dead_letters"][reason] = count
        known = handlers[name]["oldest_dead_letter"]
        handlers[name]["oldest_dead_letter"] = oldest if known is None else min(known, oldest)
    waiting = outbox.waiting(session.connection(), tables)
    by_topic = {topic: {"waiting": count, "oldest": oldest} for topic, count, oldest in waiting}
    return {"handlers": handlers, "outbox": by_topic, "left_behind": _left_behind(session, tables, declared)}


def _left_behind(session: Session, tables: Tables, declared: Sequence[Declaration]) -> list[dict[str, Any]]:
    """Return the rows that no deployed code takes: of a target's handlers by their declarations, of others by age."""
    known = {one.name: one for one in declared}
    told = []
    for name, one in known.items():
        if (number := consumers.number_of(session.connection(), tables, name)) is not None:
            steps = bool(one.steps)
            rows = left_behind.of_handler(session, tables, name, number, one.topics, has_steps=steps)
            told += [(row, ways_out.reason(row)) for row in rows]
    told += [(row, ways_out.reason(row)) for row in left_behind.unbound(session, tables, known)]
    told += [(row, ways_out.not_deployed(row)) for row in left_behind.overdue(session, tables, known)]
    return [{**row._asdict(), "reason": reason} for row, reason in told]


app.command(
    "prune",
    epilog=examples(
        "db prune --dry-run",
        "db prune --older-than 7d --handler credit-account",
    ),
)(prune)
