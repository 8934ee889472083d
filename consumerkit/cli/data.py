"""`consumerkit data`: erases what is stored about people."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from consumerkit.cli.composed import placed
from consumerkit.cli.database import TablesPlace, opened
from consumerkit.cli.examples import examples
from consumerkit.cli.json_options import JsonHandlersOption
from consumerkit.cli.output import complain, print_json, print_table, say
from consumerkit.cli.prune import runner
from consumerkit.operations.erasure import Erased, erase_in
from consumerkit.storage import audit
from consumerkit.storage import schema as our_schema
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.maintenance.erasure import EraseStatements

app = typer.Typer(no_args_is_help=True, help="Erase the stored payloads of one record key.")


@app.callback()
def _group() -> None:
    """Without this, the only command would be the whole of `consumerkit data`."""


@app.command(
    epilog=examples(
        "data erase --key alice --dry-run",
        "data erase --key alice --handler credit-account",
    )
)
@placed
def erase(
    key: Annotated[str, typer.Option("--key", metavar="KEY", help="The record key, as text.", show_default=False)],
    where: TablesPlace,
    handler: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this handler's payloads, without the outbox; can be repeated.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only; change nothing.")] = False,
    as_json: JsonHandlersOption = False,
) -> None:
    """Erase the stored payloads of one record key.

    The key's dead letters lose their payloads and kept results, and are discarded unless they were resolved. Its parked
    messages become discarded dead letters without a payload. Its outbox messages are never sent. The audit record holds
    a digest of the key. Kafka's topics keep their messages.

    Exit status 1 if a partition was busy: run the command again.
    """
    told = asyncio.run(_erase(where, key.encode(), handler, dry_run=dry_run))
    busy = [f"{one.handler}: {partition}" for one in told for partition in one.busy]
    if as_json:
        print_json([asdict(one) for one in told])
    else:
        verb = "would be erased" if dry_run else "erased"
        rows = [(one.handler or "(outbox)", one.dead_letters, one.parked, one.outbox) for one in told]
        print_table(("handler", f"dead letters {verb}", "parked messages", "outbox messages"), rows)
        if not dry_run:
            say("the ledger holds message IDs and no payloads; Kafka's topics keep their messages")
    if busy:
        complain(f"the owner's transactions did not end in time: {', '.join(busy)}; run this again")
        raise typer.Exit(1)


async def _erase(where: TablesPlace, key: bytes, handlers: list[str] | None, *, dry_run: bool) -> list[Erased]:
    async with opened(where) as found:
        await found.run(our_schema.check)
        erasing = EraseStatements(found.tables, dialect_for(found.database.dialect_name, found.tables))
        return await erase_in(runner(found), erasing, key, handlers, by=audit.current_user(), dry_run=dry_run)
