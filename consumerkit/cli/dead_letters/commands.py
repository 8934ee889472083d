"""`consumerkit dead-letters`: lists and shows dead letters, and has the actions on them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer
from sqlalchemy.orm import Session

from consumerkit.cli.composed import placed
from consumerkit.cli.database import TablesPlace, run_checked
from consumerkit.cli.dead_letters.actions import add_actions
from consumerkit.cli.dead_letters.calls import end_calls
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
from consumerkit.cli.output import as_object, complain, moment, print_json, say
from consumerkit.cli.rows import ValueOption, error_of, print_facts, print_payload, print_rows
from consumerkit.cli.stack import print_stack
from consumerkit.cli.step_line import step_line
from consumerkit.observability.printable import printable
from consumerkit.observability.words import counted
from consumerkit.redrive.plan import check
from consumerkit.storage.dead_letters import history
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.payload import Payload, Sealer, payload
from consumerkit.storage.status import StepStatus, steps_of
from consumerkit.storage.tables import Tables

app = typer.Typer(no_args_is_help=True, help="List, redrive, resolve, discard, export and import dead letters.")

_PAYLOAD = ("key", "value", "headers")


@app.command(
    "list",
    epilog=examples(
        "dead-letters list --reason exhausted --since 6h",
        "dead-letters list --handler credit-account --state all",
    ),
)
@placed
def list_(
    where: TablesPlace,
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

    rows = asyncio.run(run_checked(where, read))
    told = len(wanted) > 1
    print_rows(
        rows,
        ("id", "dead since", *(["state"] if told else []), "handler", "reason", "message ID", "redrives", "error"),
        partial(_line, with_state=told),
        none="no dead letters",
        as_json=as_json,
        limit=limit,
        next_page=lambda last: f"--before {last.id}",
    )


def _line(row: Any, *, with_state: bool) -> tuple[object, ...]:
    state = [row.state] if with_state else []
    return (row.id, row.dead_at, *state, row.handler, row.reason, row.message_id, row.redrives, error_of(row, 100))


@app.command(
    epilog=examples(
        "dead-letters groups --since 2d",
        "dead-letters list --like 118",
    )
)
@placed
def groups(
    where: TablesPlace,
    handler: HandlerOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Group dead letters by handler, error type and place in code.

    The largest groups come first.

    In the other commands, `--like` and the last ID, or any other ID of the group, choose the whole group.
    """
    selection = selected([], handler, reason, None, since, until)

    def read(session: Session, tables: Tables) -> list[Any]:
        check(session, tables, selection)
        return list(dead_letters.grouped(session, tables, selection))

    rows = asyncio.run(run_checked(where, read))
    print_rows(
        rows,
        ("letters", "last ID", "handler", "error type", "place", "oldest", "newest"),
        lambda row: (row.letters, row.last, row.handler, row.error_type, row.place, row.oldest, row.newest),
        none="no dead letters",
        as_json=as_json,
    )


@app.command(
    epilog=examples(
        "dead-letters show 118",
        "dead-letters show 118 --value",
    )
)
@placed
def show(
    id: Annotated[
        int,
        typer.Argument(
            metavar="ID", callback=storable, help="The dead letter's ID, as list shows it.", show_default=False
        ),
    ],
    where: TablesPlace,
    value: ValueOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter: its origin and its reason. The payload is shown only with --value."""
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
    if value or row.value is not None or row.key is not None:
        print_payload(row.key, payload(sealer, row) if value else None)
    if row.stack:
        print_stack(row.stack)


def _shown(session: Session, tables: Tables, id: int) -> tuple[Any, tuple[StepStatus, ...], Sealer | None]:
    row = dead_letters.shown(session, tables, id)
    if row is None or row.digest is None:
        return row, (), tables.sealer
    return row, steps_of(session.connection(), tables, row.consumer, [bytes(row.digest)]), tables.sealer


def _print_facts(row: Any) -> None:
    facts: dict[str, object] = {
        "id": row.id,
        "handler": row.handler,
        "reason": row.reason,
        "error": error_of(row),
        **({"raised at": row.place} if row.place else {}),
        "message ID": row.message_id or "(none)",
        "origin": f"{row.topic}[{row.partition}]@{row.offset} (topic ID {row.topic_id})",
        "attempts": row.attempts,
        "first error": moment(row.first_failed_at) or "(never ran)",
        "dead since": moment(row.dead_at),
        "size": f"{row.size} bytes",
        "state": f"{row.state} since {moment(row.state_at)}" if row.state_at else row.state,
        "redrives": row.redrives,
        **({} if row.hook_at is None else {"reaction": _reaction(row)}),
    }
    print_facts(facts)


def _reaction(row: Any) -> str:
    tried = f", tried {counted(row.hook_tries, 'time')}" if row.hook_tries else ""
    return f"on_dead_letter is to be called from {moment(row.hook_at)}{tried}"


def _print_history(row: Any) -> None:
    for one in history.load(row.history):
        of = f", dead by {one['error_type']} ({one['reason']}) until then" if "reason" in one else ""
        note = f": {one['note']}" if "note" in one else ""
        what = f"{one['at']} {one['what']} by {one['by']}{of}{note}"
        say(f"{'history':<12} {printable(what)}")


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
app.command("end-calls", epilog=examples('dead-letters end-calls --handler ship --note "told by hand"'))(end_calls)
app.command(
    "import",
    epilog=examples(
        "dead-letters import --handler mail --topic orders-dlt --dry-run",
        "dead-letters import --handler mail --topic orders-dlt",
    ),
)(import_)
