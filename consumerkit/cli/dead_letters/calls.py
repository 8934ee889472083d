"""`consumerkit dead-letters end-calls`: ends calls of `on_dead_letter` that no worker will make."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from consumerkit.cli.composed import placed
from consumerkit.cli.database import TablesPlace, opened
from consumerkit.cli.dead_letters.options import ByOption, OneHandlerOption
from consumerkit.cli.output import say
from consumerkit.errors import ConfigurationError
from consumerkit.observability.words import counted
from consumerkit.operations import dead_letter_calls
from consumerkit.storage import audit, consumers
from consumerkit.storage import schema as our_schema


@placed
def end_calls(
    note: Annotated[
        str, typer.Option(metavar="TEXT", help="The reason; it is in each letter's history.", show_default=False)
    ],
    handler: OneHandlerOption,
    where: TablesPlace,
    by: ByOption = None,
) -> None:
    """End due calls of on_dead_letter that no worker will make.

    The letters stay as they are: redrive, resolve or discard them as always.
    """
    if not note.strip():
        raise ConfigurationError("--note is empty: say why no worker will make these calls")
    given, later = asyncio.run(_give_up(where, handler, note, by))
    if given:
        say(f"ended {counted(given, 'call')} of on_dead_letter; the letters stay as they are")
    else:
        say("no call of on_dead_letter is due")
    if later:
        say(f"{counted(later, 'call')} not due: a worker is making them, or makes them again later")


async def _give_up(where: TablesPlace, handler: str, note: str, by: str | None) -> tuple[int, int]:
    given = 0
    async with opened(where) as found:
        await found.run(our_schema.check)
        number = await found.run(lambda session, tables: consumers.known(session.connection(), tables, handler))
        options: dict[str, Any] = {"note": note, "by": by or audit.current_user()}
        while done := await found.run(
            lambda session, tables: dead_letter_calls.give_up(session, tables, number, **options)
        ):
            given += len(done)
        later = await found.run(lambda session, tables: dead_letter_calls.later(session, tables, number))
    return given, later
