"""`consumerkit undos`: lists the steps that wait to be undone, and gives them up."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from sqlalchemy.orm import Session

from consumerkit.cli.composed import placed
from consumerkit.cli.database import TablesPlace, opened, run_checked
from consumerkit.cli.dead_letters.options import ByOption, HandlerOption, OneHandlerOption
from consumerkit.cli.examples import examples
from consumerkit.cli.json_options import JsonLinesOption
from consumerkit.cli.numbers import LimitOption
from consumerkit.cli.output import say
from consumerkit.cli.rows import print_rows
from consumerkit.errors import ConfigurationError
from consumerkit.observability.words import counted, lasting
from consumerkit.operations import undos
from consumerkit.storage import audit, consumers
from consumerkit.storage import schema as our_schema
from consumerkit.storage.tables import Tables

app = typer.Typer(no_args_is_help=True, help="List the steps that wait to be undone, and give them up.")


@app.command("list", epilog=examples("undos list --handler pay-order"))
@placed
def list_(
    where: TablesPlace,
    handler: HandlerOption = None,
    limit: LimitOption = 50,
    as_json: JsonLinesOption = False,
) -> None:
    """List the steps that wait to be undone, the first due first."""

    def read(session: Session, tables: Tables) -> list[Any]:
        if handler is not None:
            consumers.known(session.connection(), tables, handler)
        return list(undos.waiting(session, tables, handler, limit=limit))

    rows = asyncio.run(run_checked(where, read))
    print_rows(
        rows,
        ("handler", "message ID", "step", "due", "failed tries", "dead letter"),
        lambda row: (row.handler, row.message_id, row.step, _due(row.late), row.attempts, row.letter),
        none="no step waits to be undone",
        as_json=as_json,
        limit=limit,
        next_page=lambda last: "--limit shows them",
    )


@app.command("give-up", epilog=examples('undos give-up --handler pay-order --note "refunded by hand"'))
@placed
def give_up(
    note: Annotated[str, typer.Option(metavar="TEXT", help="The reason; it is in each letter.", show_default=False)],
    handler: OneHandlerOption,
    where: TablesPlace,
    by: ByOption = None,
) -> None:
    """Make dead letters of due undos that no worker will run.

    Resolve such a letter after the step was undone by hand, discard it if the effect shall stand, or redrive it when a
    worker has the handler and its steps again.
    """
    if not note.strip():
        raise ConfigurationError("--note is empty: say why no worker will undo these steps")
    letters, without, later = asyncio.run(_give_up(where, handler, note, by))
    if letters or without:
        say(f"gave up {counted(len(letters) + without, 'undo')}")
    else:
        say("no undo is due")
    if len(letters) == 1:
        say(f"its dead letter is {letters[0]}: `consumerkit dead-letters show {letters[0]}`")
    elif letters:
        say(
            f"their dead letters, {letters[0]} to {letters[-1]}: `consumerkit dead-letters list --handler {handler} "
            "--reason undo_failed`"
        )
    if without:
        say(f"{counted(without, 'undo')} without a letter, because the letter of the message is gone")
    if later:
        say(f"{counted(later, 'undo')} not due: a worker is calling them, or tries them again later")


async def _give_up(where: TablesPlace, handler: str, note: str, by: str | None) -> tuple[list[int], int, int]:
    letters: list[int] = []
    without = 0
    async with opened(where) as found:
        await found.run(our_schema.check)
        number = await found.run(lambda session, tables: consumers.known(session.connection(), tables, handler))
        options: dict[str, Any] = {"note": note, "by": by or audit.current_user()}
        while True:
            done = await found.run(lambda session, tables: undos.give_up(session, tables, number, **options))
            if done is None:
                break
            letters += done.letters
            without += done.without
        later = await found.run(lambda session, tables: undos.later(session, tables, number))
    return sorted(letters), without, later


def _due(late: float) -> str:
    return f"for {lasting(late)}" if late >= 0 else f"in {lasting(-late)}"
