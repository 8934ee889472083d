"""`consumerkit rewind` and `consumerkit skip`: move a handler's position, with an audit record."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from consumerkit.cli import target as targets
from consumerkit.cli.database import in_one_line
from consumerkit.cli.numbers import partition_number, whole
from consumerkit.cli.output import print_table, say
from consumerkit.cli.target import TargetArgument
from consumerkit.errors import ConfigurationError, StartError
from consumerkit.operations import positions
from consumerkit.operations.positions import Moved, To
from consumerkit.redaction.plain_words import shown_word

HandlerArgument = Annotated[str, typer.Argument(metavar="HANDLER", help="The handler's name.", show_default=False)]
TopicOption = Annotated[str, typer.Option(metavar="NAME", help="One of its topics.", show_default=False)]
PartitionOption = Annotated[
    list[int] | None,
    typer.Option(
        min=0,
        metavar="N",
        callback=partition_number,
        help="Only this partition; can be repeated.",
        show_default="all of them",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would happen; change nothing.")]
ByOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Your name, for the audit record.", show_default="the system's user")
]
Move = Callable[[positions.PositionStore], Awaitable[list[Moved]]]


def rewind(
    handler: HandlerArgument,
    topic: TopicOption,
    to: Annotated[str, typer.Option(metavar="OFFSET|start", help="The offset to go back to.", show_default=False)],
    target: TargetArgument = None,
    partition: PartitionOption = None,
    run_forgotten: Annotated[
        bool,
        typer.Option(
            "--run-forgotten",
            help="Run messages that the ledger may have forgotten; else they become dead letters (stale).",
        ),
    ] = False,
    dry_run: DryRunOption = False,
    by: ByOption = None,
) -> None:
    """Move a handler back, so that it reads messages again.

    The handler skips the messages that the ledger remembers. A running worker follows within seconds.
    """
    to_ = _to(to)

    async def move(place: positions.PositionStore) -> list[Moved]:
        return await positions.rewind(
            place,
            handler,
            topic,
            to_,
            partitions=partition or None,
            run_forgotten=run_forgotten,
            actor=by,
            dry_run=dry_run,
        )

    _run(move, target, dry_run=dry_run)


def skip(
    handler: HandlerArgument,
    topic: TopicOption,
    to: Annotated[str, typer.Option(metavar="OFFSET|start|end", help="The offset to go on from.", show_default=False)],
    target: TargetArgument = None,
    partition: PartitionOption = None,
    dry_run: DryRunOption = False,
    by: ByOption = None,
) -> None:
    """Move a handler past messages, or start it on a recreated topic.

    Messages that are passed over get no outcome and no dead letter. A recreated topic begins where you say;
    partitions that no longer exist are dropped. A running worker follows within seconds.
    """
    to_ = _to(to)

    async def move(place: positions.PositionStore) -> list[Moved]:
        return await positions.skip(place, handler, topic, to_, partitions=partition or None, actor=by, dry_run=dry_run)

    _run(move, target, dry_run=dry_run)


def _to(given: str) -> To:
    if given == "start":
        return "start"
    if given == "end":
        return "end"
    if (offset := whole(given)) is not None:
        return offset
    raise ConfigurationError(f"--to {shown_word(given)}: give an offset, start or end")


def _run(move: Move, target: str | None, *, dry_run: bool) -> None:
    moved = asyncio.run(_moved(move, targets.given(target)))
    rows = [
        (
            str(one.partition),
            "-" if one.before is None else one.before,
            "-" if one.gone else one.after,
            "no such partition: dropped" if one.gone else f"{one.log.start} to {one.log.end}",
        )
        for one in moved
    ]
    print_table(("partition", "before", "after", "the log has"), rows)
    if dry_run:
        say("nothing was changed")


async def _moved(move: Move, target: str) -> list[Moved]:
    async with targets.opened(target) as worker:
        try:
            return await move(
                positions.PositionStore(
                    database=worker.database,
                    dialect=worker.dialect,
                    tables=worker.tables,
                    transport=worker.transport,
                )
            )
        except (SQLAlchemyError, OSError) as error:
            raise StartError(f"{worker.database!r}: {worker.database.told(in_one_line(error))}") from error
        finally:
            await worker.database.dispose()
