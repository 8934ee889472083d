"""`consumerkit data`: what is stored about people."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from consumerkit.cli.database import PrefixOption, SchemaOption, TablesPlace, UrlOption, opened, place
from consumerkit.cli.examples import examples
from consumerkit.cli.json_options import JsonHandlersOption
from consumerkit.cli.output import complain, print_json, print_table, say
from consumerkit.cli.prune import runner
from consumerkit.cli.target import TargetArgument
from consumerkit.operations.erasure import Erased, erase_in
from consumerkit.storage import audit
from consumerkit.storage import schema as our_schema
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.maintenance.erasure import EraseStatements
from consumerkit.storage.tables import DEFAULT_PREFIX

app = typer.Typer(no_args_is_help=True, help="Erase what is stored of the messages of one key.")


@app.callback()
def _group() -> None:
    """Without this, the only command would be the whole of `consumerkit data`."""


@app.command(
    epilog=examples(
        "data erase --key alice --dry-run",
        "data erase --key alice --handler credit-account",
    )
)
def erase(
    key: Annotated[str, typer.Option("--key", metavar="KEY", help="The record key, as text.", show_default=False)],
    target: TargetArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
    handler: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Only of this handler, and not the outbox; can be repeated.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count; change nothing.")] = False,
    as_json: JsonHandlersOption = False,
) -> None:
    """Erase the stored payloads of one key.

    That is, of dead letters, parked messages, results and what waits in the outbox.
    Facts stay, payloads go: parked messages are never handled any more, and the outbox's are never sent. It is recorded
    with a digest of the key. What Kafka holds is Kafka's. Exit status 1 if a partition was busy: run it again then.
    """
    told = asyncio.run(_erase(place(target, database, prefix, schema), key.encode(), handler, dry_run=dry_run))
    busy = [f"{one.handler}: {partition}" for one in told for partition in one.busy]
    if as_json:
        print_json([asdict(one) for one in told])
    else:
        verb = "would be erased" if dry_run else "erased"
        rows = [(one.handler or "(outbox)", one.dead_letters, one.parked, one.outbox) for one in told]
        print_table(("handler", f"dead letters {verb}", "parked messages", "outbox messages"), rows)
        if not dry_run:
            say("what was processed is known by its message ID alone, and Kafka's own topics keep what they hold")
    if busy:
        complain(f"the owner's transactions did not end in time: {', '.join(busy)}; run this again")
        raise typer.Exit(1)


async def _erase(where: TablesPlace, key: bytes, handlers: list[str] | None, *, dry_run: bool) -> list[Erased]:
    async with opened(where) as found:
        await found.run(our_schema.check)
        erasing = EraseStatements(found.tables, dialect_for(found.database.dialect_name, found.tables))
        return await erase_in(runner(found), erasing, key, handlers, by=audit.current_user(), dry_run=dry_run)
