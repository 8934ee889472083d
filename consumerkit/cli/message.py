"""`consumerkit message`: shows what happened to one message."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from consumerkit.cli import target as targets
from consumerkit.cli.database import Opened, PrefixOption, SchemaOption, TablesPlace, UrlOption, opened, place
from consumerkit.cli.examples import examples
from consumerkit.cli.json_options import JsonOption
from consumerkit.cli.output import moment, print_json, say
from consumerkit.cli.rows import print_facts
from consumerkit.cli.step_line import step_line
from consumerkit.errors import ConfigurationError
from consumerkit.observability.printable import printable
from consumerkit.outcome import MessageState
from consumerkit.status import Asked, address_of, message_status
from consumerkit.storage import consumers
from consumerkit.storage import schema as our_schema
from consumerkit.storage.status import MessageStatus
from consumerkit.storage.tables import DEFAULT_PREFIX, Tables

UNKNOWN_STATUS = 4
app = typer.Typer(no_args_is_help=True, help="Show what happened to a message.")


@app.callback()
def _group() -> None:
    """Without this, the only command would be the whole of `consumerkit message`."""


@app.command(
    epilog=examples(
        "message status credit-account pay-1",
        "message status credit-account pay-1 --result --json",
    )
)
def status(
    consumer: Annotated[str, typer.Argument(metavar="HANDLER", help="The handler's name.", show_default=False)],
    id: Annotated[
        list[str],
        typer.Argument(
            metavar="ID...",
            help="The message ID; all its parts, if it has several. For coordinates(): topic-id/partition/offset.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            envvar=targets.VARIABLE,
            help="The worker, as module:attribute. Its handler declares how to read the ID.",
            show_default=False,
        ),
    ] = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
    topic: Annotated[
        str | None,
        typer.Option(metavar="NAME", help='The message\'s topic, for handlers with scope="topic".', show_default=False),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Also look for a message that is in flight now.")
    ] = True,
    result: Annotated[bool, typer.Option("--result", help="Show the kept result, too. It is a payload.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show whether a message is processed, parked, dead or unknown.

    A message can also be in flight. Exit status 4 if it is unknown.

    With --database instead of a target, give one part for each header or field that makes up the ID.
    """
    found = asyncio.run(_status(place(target, database, prefix, schema), consumer, tuple(id), topic, probe=probe))
    if as_json:
        print_json(_as_object(found, with_result=result))
    else:
        _print(found, with_result=result)
    if not found.known:
        raise typer.Exit(UNKNOWN_STATUS)


async def _status(
    where: TablesPlace, consumer: str, id: tuple[str, ...], topic: str | None, *, probe: bool
) -> MessageStatus:
    async with opened(where) as there:
        asked = _handler(there, consumer)
        address_of(asked, id, topic)

        def look(session: Session, tables: Tables) -> MessageStatus:
            our_schema.check(session, tables)
            _check_known(session, tables, consumer)
            return message_status(session, asked, *id, topic=topic, probe=probe, tables=tables)

        return await there.run(look)


def _handler(there: Opened, name: str) -> Asked:
    """Return the target's handler of this name, or the name itself where the target has no such handler."""
    declarations = () if there.worker is None else there.worker.declarations
    return next((declared.handler for declared in declarations if declared.name == name), name)


def _check_known(session: Session, tables: Tables, name: str) -> None:
    known = consumers.names(session.connection(), tables)
    if name not in known:
        raise ConfigurationError(consumers.unknown(name, known))


def _print(status: MessageStatus, *, with_result: bool) -> None:
    say(printable(f"{status.handler}, {status.message_id}: {status.state.value.replace('_', ' ')}"))
    facts = _facts(status)
    if status.state is MessageState.PROCESSED:
        facts["result"] = _result(status.result, shown=with_result)
    if status.conflicts:
        letters = "dead letter" if len(status.conflicts) == 1 else "dead letters with the IDs"
        facts["conflicts"] = f"the same ID came with another payload: {letters} {', '.join(map(str, status.conflicts))}"
    print_facts(facts)
    for step in status.steps:
        say(printable(f"{'step':<12} {step_line(step)}"))


def _result(result: object, *, shown: bool) -> str:
    if result is None:
        return "(none)"
    return json.dumps(result, ensure_ascii=False) if shown else "not shown; --result shows it"


def _facts(status: MessageStatus) -> dict[str, object]:
    since = moment(status.since)
    if status.state is MessageState.PROCESSED:
        return {"processed": since}
    if status.state is MessageState.IN_FLIGHT:
        return {"held by": "a transaction that has not committed yet"}
    if status.state is MessageState.UNKNOWN:
        return {
            "in flight": "no" if status.probed else "not known",
            "forgotten": "possibly: it may be older than the retention"
            if status.may_be_forgotten
            else "no: this handler's ledger is complete",
        }
    if status.state is MessageState.PARKED:
        return {
            "parked since": since,
            "attempts": status.attempts,
            "next attempt": moment(status.due_at) or "when the message before it is finished",
            "last error": status.error_type or "(never ran)",
        }
    if status.letter is None:
        return {"dead since": since, "dead letter": "(gone)"}
    return {
        "dead since": since,
        "reason": status.reason,
        "error": status.error_type,
        "attempts": status.attempts,
        "dead letter": f"{status.letter}, {status.letter_state}{', holds its key' if status.held else ''}",
    }


def _as_object(status: MessageStatus, *, with_result: bool) -> dict[str, object]:
    told = asdict(status)
    if not with_result:
        del told["result"]
    return told
