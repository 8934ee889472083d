"""`consumerkit dead-letters redrive | resolve | discard | export`: the actions on dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Annotated, Any, Final

import typer

from consumerkit.cli.database import TablesPlace, opened
from consumerkit.cli.dead_letters.choice import Choice, choosing
from consumerkit.cli.dead_letters.from_topic import FromTopicOption, redrive_topic
from consumerkit.cli.dead_letters.importing import AsTopicOption, ConventionOption
from consumerkit.cli.dead_letters.options import (
    AllOption,
    ByOption,
    DryRunOption,
    StateOption,
    WhyOption,
    states,
)
from consumerkit.cli.examples import LETTER_ACTIONS, examples
from consumerkit.cli.json_options import JsonLinesOption
from consumerkit.cli.numbers import storable
from consumerkit.cli.output import complain, print_json, print_table, say
from consumerkit.cli.progress import Show, progress_bar
from consumerkit.errors import ConfigurationError
from consumerkit.observability.words import counted
from consumerkit.redaction.plain_words import shown_word
from consumerkit.redrive import (
    MAX_REDRIVES,
    Convention,
    Letter,
    Progress,
    RedriveResult,
    Report,
    discard,
    export,
    redrive,
    resolve,
)
from consumerkit.storage.database import Database
from consumerkit.storage.tables import Tables

SHOWN: Final = 100
Watch = Callable[[Progress], None]
Act = Callable[[Database, Tables, Watch | None], Awaitable[Report]]
NoteOption = Annotated[
    str,
    typer.Option(metavar="TEXT", help="The reason: what was done, or why nothing is to be done.", show_default=False),
]


def add_actions(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (_redrive, _resolve, _discard, _export):
        name = command.__name__.removeprefix("_")
        app.command(name, epilog=examples(*LETTER_ACTIONS[name]))(choosing(command))


def _redrive(
    choice: Choice,
    everything: AllOption = False,
    rate: Annotated[
        float | None,
        typer.Option(metavar="N", help="Redrive at most this many letters per second.", show_default="no limit"),
    ] = None,
    max_redrives: Annotated[
        int,
        typer.Option(min=1, metavar="N", callback=storable, help="Skip letters that were redriven this many times."),
    ] = MAX_REDRIVES,
    new_id: Annotated[
        bool, typer.Option("--new-id", help="Redrive conflicts too, each under a new message ID.")
    ] = False,
    by: ByOption = None,
    note: WhyOption = "",
    from_topic: FromTopicOption = None,
    convention: ConventionOption = Convention.AUTO,
    as_topic: AsTopicOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonLinesOption = False,
) -> None:
    """Run dead letters' messages again.

    They run in the order of the log, within seconds, in the workers that own their partitions. You can interrupt the
    command and run it again, or run it twice at once: each letter is redriven once. Exit status 1 if some letters are
    still dead.
    """
    if from_topic is not None:
        if everything or not replace(choice, handler=None).selection.is_everything:
            raise ConfigurationError(
                f"--from-topic {shown_word(from_topic)} chooses the letters; of the choices only --handler goes with it"
            )
        options = {"by": by, "note": note, "rate": rate, "max_redrives": max_redrives, "new_id": new_id}
        report = redrive_topic(
            choice.target,
            choice.handler,
            from_topic,
            options,
            convention=convention,
            as_topic=as_topic,
            dry_run=dry_run,
            as_json=as_json,
        )
        if report is not None:
            _tell(report, as_json=as_json)
        return
    selection = choice.checked(everything=everything)

    def act(found: Database, tables: Tables, watch: Watch | None) -> Awaitable[Report]:
        return redrive(
            found,
            selection,
            tables=tables,
            by=by,
            note=note,
            rate=rate,
            max_redrives=max_redrives,
            new_id=new_id,
            dry_run=dry_run,
            watch=watch,
        )

    _carry_out(choice.where, act, as_json=as_json)


def _resolve(
    note: NoteOption,
    choice: Choice,
    everything: AllOption = False,
    by: ByOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonLinesOption = False,
) -> None:
    """Mark dead letters as resolved: somebody took care of them.

    Their message IDs count as processed.

    A resend is then a duplicate, and does not do again what the person did.
    """
    selection = choice.checked(everything=everything)

    def act(found: Database, tables: Tables, watch: Watch | None) -> Awaitable[Report]:
        return resolve(found, selection, note=note, tables=tables, by=by, dry_run=dry_run, watch=watch)

    _carry_out(choice.where, act, as_json=as_json)


def _discard(
    note: NoteOption,
    choice: Choice,
    everything: AllOption = False,
    by: ByOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonLinesOption = False,
) -> None:
    """Mark dead letters as discarded: nothing more is to be done. Their message IDs stay dead."""
    selection = choice.checked(everything=everything)

    def act(found: Database, tables: Tables, watch: Watch | None) -> Awaitable[Report]:
        return discard(found, selection, note=note, tables=tables, by=by, dry_run=dry_run, watch=watch)

    _carry_out(choice.where, act, as_json=as_json)


def _export(
    choice: Choice,
    state: StateOption = "dead",
) -> None:
    """Print dead letters with their payloads, as JSON lines. Bytes that are not UTF-8 are base64."""
    selection, wanted = choice.selection, states(state)
    where = choice.where

    async def print_all() -> int:
        count = 0
        async with opened(where) as found:
            async for letter in export(found.database, selection, tables=found.tables, states=wanted):
                print_json(letter)
                count += 1
        return count

    if asyncio.run(print_all()) == 0 and choice.ids:
        complain(f"none of these is {'a dead letter' if state == 'all' else f'{state}; --state all exports any'}")
        raise typer.Exit(1)


def _carry_out(where: TablesPlace, act: Act, *, as_json: bool) -> None:
    async def run() -> Report:
        async with opened(where) as found:
            with progress_bar("dead letters", quiet=as_json) as show:
                return await act(found.database, found.tables, show and _watching(show))

    try:
        report = asyncio.run(run())
    except KeyboardInterrupt:
        complain("interrupted: what was done so far stays done; run the same command again to go on")
        raise
    _tell(report, as_json=as_json)


def _tell(report: Report, *, as_json: bool) -> None:
    """Print the result for the letters; exit status 1 if some are still dead."""
    if as_json:
        print_json([_as_object(letter) for letter in report.letters])
    else:
        _print(report)
    if report.busy:
        complain(
            f"skipped, because a transaction did not end in time: {', '.join(map(str, report.busy))}; run the "
            "command again"
        )
    still_dead = [letter for letter in report.left if letter.result is not RedriveResult.NOT_DEAD]
    if not report.dry_run and (still_dead or report.busy):
        raise typer.Exit(1)


def _watching(show: Show) -> Watch:
    return lambda progress: show(progress.looked_at, progress.total, str(progress.partition))


def _print(report: Report) -> None:
    if not report.letters:
        say("no dead letters")
        return
    shown = report.letters if report.dry_run else report.left
    if shown:
        print_table(("id", "handler", "from", "message ID", "reason", "result"), [_line(one) for one in shown[:SHOWN]])
        if len(shown) > SHOWN:
            say(f"and {len(shown) - SHOWN} more; --json tells all")
        say("")
    for result, count in sorted(report.counts.items()):
        would = "would be " if report.dry_run and result.is_done else ""
        say(f"{count} {would}{result}" + (f": {result.way_out}" if result.way_out else ""))
    if report.undos:
        say(f"{counted(report.undos, 'step')} to undo: that goes on, and a redriven message runs after it")


def _line(letter: Letter) -> tuple[object, ...]:
    at = "" if letter.partition is None else f"{letter.partition}@{letter.offset}"
    return (letter.id, letter.handler, at, letter.message_id, letter.reason, letter.result)


def _as_object(letter: Letter) -> dict[str, Any]:
    told = asdict(letter)
    told["partition"] = None if letter.partition is None else str(letter.partition)
    return told | {"way_out": letter.result.way_out}
