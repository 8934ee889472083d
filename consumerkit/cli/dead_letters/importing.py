"""`consumerkit dead-letters import`: reads a dead-letter topic of any framework into the table."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, TypeVar

import typer
from sqlalchemy.exc import SQLAlchemyError

from consumerkit.cli import target as targets
from consumerkit.cli.database import in_one_line
from consumerkit.cli.dead_letters.options import ByOption, DryRunOption, WhyOption
from consumerkit.cli.json_options import JsonOption
from consumerkit.cli.numbers import HIGHEST_PARTITION, storable, whole
from consumerkit.cli.output import print_json, print_table, say
from consumerkit.cli.progress import Show, progress_bar
from consumerkit.cli.target import TargetArgument
from consumerkit.dead_letters.formats import Convention
from consumerkit.errors import ConfigurationError, StartError
from consumerkit.redaction.plain_words import shown_word
from consumerkit.redrive.importing.api import ImportReport, ImportResult, Line, Watch, import_letters

HandlerOption = Annotated[
    str,
    typer.Option("--handler", metavar="NAME", help="The handler that gets the dead letters.", show_default=False),
]
TopicOption = Annotated[
    str, typer.Option("--topic", metavar="TOPIC", help="The dead-letter topic.", show_default=False)
]
ConventionOption = Annotated[
    Convention,
    typer.Option(
        metavar="NAME",
        help=f"How its records are written: {', '.join(Convention)}. auto looks at each record's headers.",
    ),
]
AsTopicOption = Annotated[
    str | None,
    typer.Option(
        metavar="TOPIC",
        help="The handler's topic for letters whose message came from another topic.",
        show_default="such letters are skipped",
    ),
]
FromOffsetOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[PARTITION:]OFFSET",
        help="The offset to begin at, in one partition or in all; can be repeated.",
        show_default="the oldest record",
    ),
]
T = TypeVar("T")
_COLUMNS = ("record", "result", "origin", "message ID", "reason", "why")


def import_(
    handler: HandlerOption,
    topic: TopicOption,
    target: TargetArgument = None,
    convention: ConventionOption = Convention.AUTO,
    as_topic: AsTopicOption = None,
    from_offset: FromOffsetOption = None,
    by: ByOption = None,
    note: WhyOption = "",
    dry_run: DryRunOption = False,
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", callback=storable, help="Print at most this many records one by one.")
    ] = 50,
    as_json: JsonOption = False,
) -> None:
    """Import a dead-letter topic for a handler.

    Its records become dead letters of the handler, and can be redriven. The command reads consumerkit's own records,
    Spring's (kafka_dlt-*) and Kafka Connect's (__connect.errors.*). The topic stays as it is. A record that was
    imported or processed before adds nothing, so you can interrupt the command and run it again. Exit status 1 if a
    record does not keep to its convention: the command reports and skips it.
    """
    call = partial(
        import_letters,
        handler=handler,
        topic=topic,
        convention=convention,
        as_topic=as_topic,
        by=by,
        note=note,
        dry_run=dry_run,
        keep=limit,
    )
    report: ImportReport = asyncio.run(imported(targets.given(target), topic, from_offset or (), call, quiet=as_json))
    print_report(report, topic, as_json=as_json)
    if report.wants_a_look:
        raise typer.Exit(1)


async def imported(
    target: str, topic: str, from_offset: Sequence[str], call: Callable[..., Awaitable[T]], *, quiet: bool
) -> T:
    """Open a target and import with it; an error of the database becomes a `StartError` of one line."""
    async with targets.opened(target) as worker:
        try:
            known = (await worker.transport.topics([topic])).get(topic)
            offsets = beginnings(from_offset, 0 if known is None else known.partitions)
            with progress_bar("reading", quiet=quiet) as show:
                return await call(worker, offsets=offsets, watch=show and _watching(show))
        except (SQLAlchemyError, OSError) as error:
            why = f"{worker.database!r}: {worker.database.told(in_one_line(error))}"
            raise StartError(f"{why}; what was imported stays, so run this again") from error
        finally:
            await worker.database.dispose()


def beginnings(given: Sequence[str], partitions: int) -> dict[int, int]:
    """Return the offsets to begin with, by partition; an offset without a partition applies to all others.

    Raises:
        ConfigurationError: A value has another form, or there is no such partition.

    Example:
        >>> beginnings(["1:7", "40"], 3)
        {0: 40, 2: 40, 1: 7}
    """
    everywhere: dict[int, int] = {}
    single: dict[int, int] = {}
    for one in given:
        partition, _, offset = one.rpartition(":")
        told = f"--from-offset {shown_word(one)}"
        number, at = whole(partition, HIGHEST_PARTITION), whole(offset)
        if at is None or (number is None and partition):
            raise ConfigurationError(f"{told}: write OFFSET or PARTITION:OFFSET, such as 3:1200")
        if number is None:
            everywhere = dict.fromkeys(range(partitions), at)
        elif partitions and number >= partitions:
            raise ConfigurationError(f"{told}: the topic has partitions 0 to {partitions - 1}")
        else:
            single[number] = at
    return {**{number: at for number, at in everywhere.items() if number not in single}, **single}


def _watching(show: Show) -> Watch:
    return lambda progress: show(progress.read, progress.total, "reading")


def print_report(report: ImportReport, topic: str, *, as_json: bool) -> None:
    """Print the result of an import: the counts, and the records to show one by one."""
    if as_json:
        counts = {result.value: count for result, count in report.counts.items()}
        lines = [_as_object(line) for line in report.lines]
        print_json({"dry_run": report.dry_run, "imported": report.imported, "counts": counts, "records": lines})
        return
    if report.lines:
        print_table(_COLUMNS, [_row(line) for line in report.lines])
    total = sum(report.counts.values())
    told = ", ".join(f"{report.counts[result]} {result.value}" for result in ImportResult if report.counts[result])
    would = "a dry run, nothing was changed: " if report.dry_run else ""
    say(f"{would}{total} records of {topic}" + (f": {told}" if told else ""))
    if report.untold:
        say(f"{report.untold} more are not shown: --limit {len(report.lines) + report.untold} shows them")


def _row(line: Line) -> tuple[object, ...]:
    return (line.record, line.result.value, line.origin, line.message_id, line.reason, line.why)


def _as_object(line: Line) -> dict[str, object]:
    told = asdict(line)
    return {
        **told,
        "record": line.record._asdict(),
        "origin": None if line.origin is None else line.origin._asdict(),
    }
