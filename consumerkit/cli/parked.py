"""`consumerkit parked`: lists and shows parked messages, and retries them now."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from sqlalchemy.orm import Session

from consumerkit.cli.composed import placed
from consumerkit.cli.database import PrefixOption, SchemaOption, TablesPlace, UrlOption, place, run_checked
from consumerkit.cli.dead_letters.options import (
    AllOption,
    ByOption,
    HandlerOption,
    WhatArgument,
    parted,
)
from consumerkit.cli.examples import examples
from consumerkit.cli.json_options import JsonLinesOption, JsonOption
from consumerkit.cli.numbers import AfterOption, LimitOption, storable
from consumerkit.cli.output import as_object, complain, moment, print_json, say
from consumerkit.cli.rows import ValueOption, error_of, print_facts, print_payload, print_rows
from consumerkit.cli.stack import print_stack
from consumerkit.errors import ConfigurationError
from consumerkit.storage import audit, consumers
from consumerkit.storage.parking import listing as parked_listing
from consumerkit.storage.parking.listing import ParkedSelection
from consumerkit.storage.parking.parked import Kind
from consumerkit.storage.payload import payload
from consumerkit.storage.tables import DEFAULT_PREFIX, Tables

app = typer.Typer(no_args_is_help=True, help="List parked messages, and retry them now.")

ErrorTypeOption = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="Only messages with this error type, as list shows it.", show_default=False),
]
_UNREADABLE = ("key", "key_digest", "value", "headers", "digest", "fingerprint", "sealed", "consumer")


@app.command("list", epilog=examples("parked list --handler credit-account"))
@placed
def list_(
    where: TablesPlace,
    handler: HandlerOption = None,
    error_type: ErrorTypeOption = None,
    limit: LimitOption = 50,
    after: AfterOption = 0,
    as_json: JsonLinesOption = False,
) -> None:
    """List parked messages in their order, without payloads."""
    selection = ParkedSelection(handler=handler, error_type=error_type)

    def read(session: Session, tables: Tables) -> list[Any]:
        _check(session, tables, selection)
        return list(parked_listing.listed(session, tables, selection, limit=limit, after=after))

    rows = asyncio.run(run_checked(where, read))
    print_rows(
        rows,
        ("id", "parked since", "handler", "message ID", "attempts", "next attempt", "last error"),
        lambda row: (
            row.id,
            row.parked_at,
            row.handler,
            row.message_id,
            row.attempts,
            _next_attempt(row),
            error_of(row, 100),
        ),
        none="no parked messages",
        as_json=as_json,
        limit=limit,
        next_page=lambda last: f"--after {last.id}",
    )


@app.command(epilog=examples("parked groups", "parked retry-now --error-type ProviderTimeout"))
@placed
def groups(
    where: TablesPlace,
    handler: HandlerOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Group parked messages by handler and last error. The largest groups come first."""
    selection = ParkedSelection(handler=handler)

    def read(session: Session, tables: Tables) -> list[Any]:
        _check(session, tables, selection)
        return list(parked_listing.grouped(session, tables, selection))

    rows = asyncio.run(run_checked(where, read))
    print_rows(
        rows,
        ("messages", "due", "handler", "error type", "first ID", "oldest", "newest"),
        lambda row: (
            row.messages,
            row.due,
            row.handler,
            row.error_type or "(none yet)",
            row.first,
            row.oldest,
            row.newest,
        ),
        none="no parked messages",
        as_json=as_json,
    )


@app.command(epilog=examples("parked show 118", "parked show 118 --value"))
@placed
def show(
    id: Annotated[
        int,
        typer.Argument(metavar="ID", callback=storable, help="The message's ID, as list shows it.", show_default=False),
    ],
    where: TablesPlace,
    value: ValueOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show one parked message: why it waits, and until when. The payload is shown only with --value."""

    def read(session: Session, tables: Tables) -> tuple[Any, list[int], Any]:
        row = parked_listing.shown(session, tables, id)
        return row, list(parked_listing.behind(session, tables, row)) if row is not None else [], tables.sealer

    row, ahead, sealer = asyncio.run(run_checked(where, read))
    if row is None:
        complain(f"no parked message has the ID {id}: it ran since, or the ID is wrong; see `consumerkit parked list`")
        raise typer.Exit(1)
    found = payload(sealer, row) if value else None
    if as_json:
        told = {name: fact for name, fact in as_object(row).items() if name not in _UNREADABLE}
        if found is not None:
            told |= {"key": row.key, "headers": [list(header) for header in found.headers], "value": found.value}
        print_json({**told, "behind": ahead[0] if ahead else None})
        return
    print_facts(_facts(row, ahead))
    print_payload(row.key, found)
    if row.stack:
        print_stack(row.stack)


def _facts(row: Any, ahead: list[int]) -> dict[str, object]:
    facts = {
        "id": row.id,
        "handler": row.handler,
        "message ID": row.message_id,
        "origin": f"{row.topic}[{row.partition}]@{row.offset} (topic ID {row.topic_id})",
        "last error": error_of(row) or "(it has not run yet)",
        "attempts": row.attempts,
        "first error": moment(row.first_failed_at) or "(never)",
        "parked since": moment(row.parked_at),
        "next attempt": f"behind {ahead[0]}" if ahead else _next_attempt(row),
    }
    if row.dead_letter is not None:
        facts["dead letter"] = f"{row.dead_letter}; consumerkit dead-letters show {row.dead_letter}"
    return facts


@app.command("retry-now", epilog=examples("parked retry-now 118 120-125", "parked retry-now --handler credit-account"))
def retry_now(
    what: WhatArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
    handler: HandlerOption = None,
    error_type: ErrorTypeOption = None,
    all_: AllOption = False,
    by: ByOption = None,
) -> None:
    """Make parked messages due now.

    Attempts count as before. A message that waits behind another one keeps its turn. The audit record says who did it.
    """
    ids, target = parted(what)
    selection = ParkedSelection(ids=tuple(ids) or None, handler=handler, error_type=error_type)
    if selection.is_everything and not all_:
        raise ConfigurationError("no message is chosen; give IDs, --handler or --error-type, or --all for every one")
    if all_ and not selection.is_everything:
        raise ConfigurationError("--all does not go with IDs, --handler or --error-type; leave one of them out")

    def work(session: Session, tables: Tables) -> int:
        _check(session, tables, selection)
        return parked_listing.make_due(session, tables, selection, actor=by or audit.current_user())

    count = asyncio.run(run_checked(place(target, database, prefix, schema), work))
    if count:
        say(f"{count} {'message is' if count == 1 else 'messages are'} due now; running workers retry within seconds")
    else:
        say("nothing to do: no such message waits for a later time")


def _check(session: Session, tables: Tables, selection: ParkedSelection) -> None:
    """Refuse the name of a handler that has never started: it is probably misspelt."""
    if selection.handler is not None:
        consumers.known(session.connection(), tables, selection.handler)


def _next_attempt(row: Any) -> str:
    if row.kind == Kind.HELD.value:
        return "held: decide on the dead letter before it"
    if row.kind == Kind.RELEASED.value:
        return "released: leaves the parked ones within seconds"
    if row.due_in is None:
        return "behind another"
    return "due" if row.due_in <= 0 else f"in {_span(float(row.due_in))}"


def _span(seconds: float) -> str:
    """Return a wait in readable units.

    Example:
        >>> _span(4.2), _span(61), _span(7_300), _span(200_000)
        ('5 s', '2 min', '2 h 2 min', '2 d 7 h')
    """
    if seconds <= 60:
        return f"{-int(-seconds // 1)} s"
    minutes = -int(-seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
