"""`consumerkit dead-letters`: lists and shows dead letters, and has the actions on them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

import typer
from sqlalchemy.orm import Session

from consumerkit.cli.database import PrefixOption, SchemaOption, UrlOption, place, run_checked
from consumerkit.cli.dead_letters.actions import add_actions
from consumerkit.cli.dead_letters.importing import import_
from consumerkit.cli.dead_letters.options import (
    HandlerOption,
    LikeOption,
    ReasonOption,
    SinceOption,
    StateOption,
    UntilOption,
    selected,
    states,
)
from consumerkit.cli.examples import examples
from consumerkit.cli.json_options import JsonLinesOption, JsonOption
from consumerkit.cli.numbers import LimitOption, storable
from consumerkit.cli.output import as_object, complain, escaped, moment, print_json, print_table, say
from consumerkit.cli.stack import print_stack
from consumerkit.cli.step_line import step_line
from consumerkit.cli.target import TargetArgument
from consumerkit.observability.printable import printable
from consumerkit.redrive.plan import check
from consumerkit.storage.dead_letters import history
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.payload import Payload, Sealer, payload
from consumerkit.storage.status import StepStatus, steps_of
from consumerkit.storage.tables import DEFAULT_PREFIX, Tables

app = typer.Typer(no_args_is_help=True, help="List, redrive, resolve, discard, export and import dead letters.")

_PAYLOAD = ("key", "value", "headers")


@app.command(
    "list",
    epilog=examples(
        "dead-letters list --reason exhausted --since 6h",
        "dead-letters list --handler credit-account --state all",
    ),
)
def list_(
    target: TargetArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
    handler: HandlerOption = None,
    reason: ReasonOption = None,
    like: LikeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    state: StateOption = "dead",
    limit: LimitOption = 50,
    before: Annotated[
        int | None,
        typer.Option(metavar="ID", callback=storable, help="Only lower IDs: the next page.", show_default=False),
    ] = None,
    as_json: JsonLinesOption = False,
) -> None:
    """List dead letters, the newest first, without their payloads.

    The list holds open dead letters only, unless --state says otherwise.
    """
    selection = selected([], handler, reason, like, since, until)
    wanted = states(state)

    def read(session: Session, tables: Tables) -> list[Any]:
        check(session, tables, selection)
        return list(dead_letters.listed(session, tables, selection, states=wanted, limit=limit, before=before))

    rows = asyncio.run(run_checked(place(target, database, prefix, schema), read))
    if as_json:
        print_json([as_object(row) for row in rows])
        return
    if not rows:
        say("no dead letters")
        return
    told = len(wanted) > 1
    titles = ("id", "dead since", *(["state"] if told else []), "handler", "reason", "message ID", "redrives", "error")
    print_table(titles, [_line(row, with_state=told) for row in rows])
    if len(rows) == limit:
        say(f"there may be more: --before {rows[-1].id}")


def _line(row: Any, *, with_state: bool) -> tuple[object, ...]:
    error = f"{row.error_type}: {row.error}" if row.error else row.error_type
    state = [row.state] if with_state else []
    return (row.id, row.dead_at, *state, row.handler, row.reason, row.message_id, row.redrives, _cut(error))


def _cut(text: str, length: int = 100) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


@app.command(
    epilog=examples(
        "dead-letters groups --since 2d",
        "dead-letters list --like 118",
    )
)
def groups(
    target: TargetArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
    handler: HandlerOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Group dead letters by handler, error type and place in the code.

    The largest groups come first.

    In the other commands, `--like` and the last ID, or any other ID of the group, choose the whole group.
    """
    selection = selected([], handler, reason, None, since, until)

    def read(session: Session, tables: Tables) -> list[Any]:
        check(session, tables, selection)
        return list(dead_letters.grouped(session, tables, selection))

    rows = asyncio.run(run_checked(place(target, database, prefix, schema), read))
    if as_json:
        print_json([as_object(row) for row in rows])
    elif rows:
        titles = ("letters", "last ID", "handler", "error type", "place", "oldest", "newest")
        lines = [
            (row.letters, row.last, row.handler, row.error_type, row.place, row.oldest, row.newest) for row in rows
        ]
        print_table(titles, lines)
    else:
        say("no dead letters")


@app.command(
    epilog=examples(
        "dead-letters show 118",
        "dead-letters show 118 --value",
    )
)
def show(
    id: Annotated[
        int,
        typer.Argument(
            metavar="ID", callback=storable, help="The dead letter's ID, as list shows it.", show_default=False
        ),
    ],
    target: TargetArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
    value: Annotated[bool, typer.Option("--value", help="Show the payload, too: key, headers and value.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter: its origin and its reason. The payload is shown only with --value."""
    where = place(target, database, prefix, schema)
    row, steps, sealer = asyncio.run(run_checked(where, lambda session, tables: _shown(session, tables, id)))
    if row is None:
        complain(f"there is no dead letter {id}; consumerkit dead-letters list shows what there is")
        raise typer.Exit(1)
    if as_json:
        whole = _whole(row, payload(sealer, row) if value else None)
        print_json({**whole, "steps": [asdict(step) for step in steps]} if steps else whole)
        return
    _print_facts(row)
    _print_history(row)
    for step in steps:
        say(printable(f"{'step':<12} {step_line(step)}"))
    if value:
        _print_payload(row, payload(sealer, row))
    elif row.value is not None or row.key is not None:
        say("payload      not shown; --value shows it")
    if row.stack:
        print_stack(row.stack)


def _shown(session: Session, tables: Tables, id: int) -> tuple[Any, tuple[StepStatus, ...], Sealer | None]:
    row = dead_letters.shown(session, tables, id)
    if row is None or row.digest is None:
        return row, (), tables.sealer
    return row, steps_of(session.connection(), tables, row.consumer, [bytes(row.digest)]), tables.sealer


def _print_facts(row: Any) -> None:
    facts = {
        "id": row.id,
        "handler": row.handler,
        "reason": row.reason,
        "error": f"{row.error_type}: {row.error}" if row.error else row.error_type,
        **({"raised at": row.place} if row.place else {}),
        "message ID": row.message_id or "(none)",
        "origin": f"{row.topic}[{row.partition}]@{row.offset} (topic ID {row.topic_id})",
        "attempts": row.attempts,
        "first error": moment(row.first_failed_at) or "(never ran)",
        "dead since": moment(row.dead_at),
        "size": f"{row.size} bytes",
        "state": f"{row.state} since {moment(row.state_at)}" if row.state_at else row.state,
        "redrives": row.redrives,
    }
    for name, fact in facts.items():
        say(f"{name:<12} {printable(str(fact))}")


def _print_history(row: Any) -> None:
    for one in history.load(row.history):
        of = f", dead by {one['error_type']} ({one['reason']}) until then" if "reason" in one else ""
        note = f": {one['note']}" if "note" in one else ""
        what = f"{one['at']} {one['what']} by {one['by']}{of}{note}"
        say(f"{'history':<12} {printable(what)}")


def _print_payload(row: Any, found: Payload) -> None:
    say(f"{'key':<12} {escaped(row.key)}")
    for name, content in found.headers:
        say(f"{'header':<12} {printable(name)}: {escaped(content)}")
    say(f"{'value':<12} {escaped(found.value)}")


def _whole(row: Any, found: Payload | None) -> dict[str, object]:
    told = as_object(row)
    digest = told.pop("digest")
    told["digest"] = None if digest is None else bytes(row.digest).hex()
    told["history"] = history.load(row.history)
    fingerprint = told.pop("fingerprint")
    told["fingerprint"] = None if fingerprint is None else bytes(row.fingerprint).hex()
    if found is not None:
        told |= {"headers": [[name, content] for name, content in found.headers], "value": found.value, "sealed": False}
    else:
        told = {name: fact for name, fact in told.items() if name not in _PAYLOAD}
    return told


add_actions(app)
app.command(
    "import",
    epilog=examples(
        "dead-letters import --handler mail --topic orders-dlt --dry-run",
        "dead-letters import --handler mail --topic orders-dlt",
    ),
)(import_)
