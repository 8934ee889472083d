"""`consumerkit outbox`: lists what waits to be sent, and discards one message."""

from __future__ import annotations

import asyncio
import getpass
from typing import Annotated, Any

import typer
from sqlalchemy.orm import Session

from consumerkit.cli.composed import placed
from consumerkit.cli.database import TablesPlace, run_checked
from consumerkit.cli.examples import examples
from consumerkit.cli.json_options import JsonLinesOption
from consumerkit.cli.numbers import AfterOption, LimitOption, storable
from consumerkit.cli.output import complain, say
from consumerkit.cli.rows import print_rows
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage import outbox
from consumerkit.storage.tables import Tables

app = typer.Typer(no_args_is_help=True, help="List the messages that wait to be sent, and discard one.")


@app.command(
    "list",
    epilog=examples(
        "outbox list --topic receipts",
    ),
)
@placed
def list_(
    where: TablesPlace,
    topic: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only messages for this topic.", show_default=False)
    ] = None,
    limit: LimitOption = 50,
    after: AfterOption = 0,
    as_json: JsonLinesOption = False,
) -> None:
    """List the messages to be sent, the oldest first, without payloads."""

    def read(session: Session, tables: Tables) -> list[Any]:
        return list(outbox.listed(session, tables, topic=topic, limit=limit, after=after))

    rows = asyncio.run(run_checked(where, read))
    print_rows(
        rows,
        ("id", "since", "topic", "bytes"),
        lambda row: (row.sequence, row.created_at, row.topic, row.size),
        none="the outbox is empty" if topic is None else f"no message waits for topic {shown_word(topic)}",
        as_json=as_json,
        limit=limit,
        next_page=lambda last: f"--after {last.sequence}",
    )


@app.command(
    epilog=examples(
        "outbox discard 118",
    )
)
@placed
def discard(
    id: Annotated[
        int,
        typer.Argument(
            metavar="ID", callback=storable, help="The message's ID, as list and the log show it.", show_default=False
        ),
    ],
    where: TablesPlace,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove one message that was not sent.

    The messages behind it are sent then. The audit record says who did it.
    """
    if not yes:
        typer.confirm(f"message {id} will never be sent; discard it?", abort=True)
    topic = asyncio.run(
        run_checked(where, lambda session, tables: outbox.discard(session, tables, id, actor=getpass.getuser()))
    )
    if topic is None:
        complain(f"there is no message {id} in the outbox: it was sent, or consumerkit outbox list shows it")
        raise typer.Exit(1)
    say(f"discarded message {id} for {topic}")
