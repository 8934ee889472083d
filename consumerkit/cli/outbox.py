"""`consumerkit outbox`: lists what waits to be sent, and discards one message."""

from __future__ import annotations

import asyncio
import getpass
from typing import Annotated, Any

import typer
from sqlalchemy.orm import Session

from consumerkit.cli.database import PrefixOption, SchemaOption, UrlOption, place, run_checked
from consumerkit.cli.examples import examples
from consumerkit.cli.json_options import JsonLinesOption
from consumerkit.cli.numbers import AfterOption, LimitOption, storable
from consumerkit.cli.output import as_object, complain, print_json, print_table, say
from consumerkit.cli.target import TargetArgument
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage import outbox
from consumerkit.storage.tables import DEFAULT_PREFIX, Tables

app = typer.Typer(no_args_is_help=True, help="List the messages that wait to be sent, and discard one.")


@app.command(
    "list",
    epilog=examples(
        "outbox list --topic receipts",
    ),
)
def list_(
    target: TargetArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
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

    rows = asyncio.run(run_checked(place(target, database, prefix, schema), read))
    if as_json:
        print_json([as_object(row) for row in rows])
        return
    if not rows:
        say("the outbox is empty" if topic is None else f"no message waits for topic {shown_word(topic)}")
        return
    print_table(
        ("id", "since", "topic", "bytes"), [(row.sequence, row.created_at, row.topic, row.size) for row in rows]
    )
    if len(rows) == limit:
        say(f"there may be more: --after {rows[-1].sequence}")


@app.command(
    epilog=examples(
        "outbox discard 118",
    )
)
def discard(
    id: Annotated[
        int,
        typer.Argument(
            metavar="ID", callback=storable, help="The message's ID, as list and the log show it.", show_default=False
        ),
    ],
    target: TargetArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove one message that was not sent.

    The messages behind it are sent then. The audit record says who did it.
    """
    where = place(target, database, prefix, schema)
    if not yes:
        typer.confirm(f"message {id} will never be sent; discard it?", abort=True)
    topic = asyncio.run(
        run_checked(where, lambda session, tables: outbox.discard(session, tables, id, actor=getpass.getuser()))
    )
    if topic is None:
        complain(f"there is no message {id} in the outbox: it was sent, or consumerkit outbox list shows it")
        raise typer.Exit(1)
    say(f"discarded message {id} for {topic}")
