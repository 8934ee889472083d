"""The functions that a program calls."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from consumerkit.errors import ConfigurationError
from consumerkit.redrive import plan
from consumerkit.redrive.actions import Close, Redrive
from consumerkit.redrive.batch import Action
from consumerkit.redrive.decision import MAX_REDRIVES
from consumerkit.redrive.exported import PAGE, page
from consumerkit.redrive.report import Report
from consumerkit.redrive.run import Run, Watch
from consumerkit.storage import schema
from consumerkit.storage.audit import current_user
from consumerkit.storage.database import Database, Given
from consumerkit.storage.dead_letters.letters import State
from consumerkit.storage.dead_letters.selection import Selection
from consumerkit.storage.tables import DEFAULT_TABLES, Tables

Target = Database | Given


async def redrive(
    database: Target,
    selection: Selection,
    *,
    tables: Tables = DEFAULT_TABLES,
    by: str | None = None,
    note: str = "",
    rate: float | None = None,
    max_redrives: int = MAX_REDRIVES,
    new_id: bool = False,
    dry_run: bool = False,
    watch: Watch | None = None,
) -> Report:
    """Run dead letters' messages again.

    Each message is parked again, in the order of the log, and its partition's owner runs it within seconds. A letter
    whose message ID was processed since becomes resolved instead. The call may be interrupted at any point and
    repeated, or run twice at once: each batch is one transaction, under the fence of its partition.

    Args:
        database: A URL, an engine, a sessionmaker, or a `Worker`'s `database`.
        selection: Which letters; `Selection()` means all of them.
        tables: The table definitions.
        by: Who redrives, for the record; the operating system's user by default.
        note: The reason, for the audit record.
        rate: The most letters a second.
        max_redrives: Leaves letters that were already redriven so often.
        new_id: Whether to redrive conflicts too, each under a message ID of its own: `<old ID>#redrive-<letter's ID>`.
        dry_run: Whether to change nothing; the report then shows the result that each letter would have.
        watch: Called after each batch.

    Raises:
        StartError: The tables are missing or of another version, or a handler is unknown.
        ConfigurationError: A number is out of range.

    Example:
        >>> async def after_the_outage(database: str) -> None:
        ...     report = await redrive(database, Selection(handler="credit-account"), note="provider is back", rate=50)
        ...     for letter in report.left:
        ...         print(letter.id, letter.result, letter.result.way_out)
    """
    _check_number("rate", rate)
    _check_number("max_redrives", max_redrives)
    action = Redrive(max_redrives=max_redrives, new_id=new_id, note=note)
    return await _over(database, selection, action, tables=tables, by=by, rate=rate, dry_run=dry_run, watch=watch)


async def resolve(
    database: Target,
    selection: Selection,
    *,
    note: str,
    tables: Tables = DEFAULT_TABLES,
    by: str | None = None,
    dry_run: bool = False,
    watch: Watch | None = None,
) -> Report:
    """Mark dead letters as resolved: a person has done their work outside consumerkit.

    Their message IDs then count as processed, so a resend does not repeat the work.

    Args:
        database: As in `redrive`.
        selection: Which letters.
        tables: The table definitions.
        by: Who resolves them.
        dry_run: Whether to change nothing.
        watch: Called after each batch.
        note: What was done; required, because later readers need it.

    Example:
        >>> async def by_hand(database: str) -> None:
        ...     await resolve(database, Selection(ids=[7]), note="credited by hand, ticket 4711")
    """
    return await _close(State.RESOLVED, note, database, selection, tables=tables, by=by, dry_run=dry_run, watch=watch)


async def discard(
    database: Target,
    selection: Selection,
    *,
    note: str,
    tables: Tables = DEFAULT_TABLES,
    by: str | None = None,
    dry_run: bool = False,
    watch: Watch | None = None,
) -> Report:
    """Give dead letters up for good: their messages need no work.

    Their message IDs stay dead, so a resend is treated as before.

    Args:
        database: As in `redrive`.
        selection: Which letters.
        tables: The table definitions.
        by: Who discards them.
        dry_run: Whether to change nothing.
        watch: Called after each batch.
        note: The reason; required.

    Example:
        >>> async def test_data(database: str) -> None:
        ...     await discard(database, Selection(like=7), note="records of the load test")
    """
    return await _close(State.DISCARDED, note, database, selection, tables=tables, by=by, dry_run=dry_run, watch=watch)


async def export(
    database: Target,
    selection: Selection,
    *,
    tables: Tables = DEFAULT_TABLES,
    states: Collection[State] = (State.DEAD,),
) -> AsyncIterator[dict[str, Any]]:
    """Yield complete dead letters as JSON values, in the order of their IDs.

    Bytes become text if they are UTF-8, else `{"base64": "..."}`.

    Args:
        database: As in `redrive`.
        selection: Which letters.
        tables: The table definitions.
        states: The states of the letters to yield.

    Raises:
        StartError: No handler has the given name, or no letter has the given ID `like`.

    Example:
        >>> async def to_file(database: str) -> None:
        ...     with open("letters.jsonl", "w") as file:
        ...         async for letter in export(database, Selection(reason="undecodable")):
        ...             print(json.dumps(letter), file=file)
    """
    async with opened(database) as found:
        tables = await found.locate(tables)

        def checked(session: Session) -> None:
            schema.check(session, tables)
            plan.check(session, tables, selection)

        await found.run(checked)
        after = 0
        while True:
            letters = await found.run(partial(page, tables=tables, selection=selection, states=states, after=after))
            for letter in letters:
                yield letter
            if len(letters) < PAGE:
                return
            after = letters[-1]["id"]


async def _close(state: State, note: str, database: Target, selection: Selection, **options: Any) -> Report:
    if not note.strip():
        raise ConfigurationError(f"{state.value} letters need a note: say what was done, or why nothing will be")
    return await _over(database, selection, Close(state, note), **options)


async def _over(
    database: Target,
    selection: Selection,
    action: Action,
    *,
    tables: Tables,
    by: str | None,
    dry_run: bool,
    watch: Watch | None,
    rate: float | None = None,
) -> Report:
    async with opened(database) as found:
        tables = await found.locate(tables)
        await found.run(lambda session: schema.check(session, tables))
        run = Run(found.run, tables, action, by or current_user(), rate=rate, dry=dry_run, watch=watch)
        return await run.over(selection)


@asynccontextmanager
async def opened(database: Target) -> AsyncIterator[Database]:
    """Open a database, and close it if it was opened here."""
    found = database if isinstance(database, Database) else Database(database, connections=1)
    try:
        yield found
    finally:
        if found is not database:
            await found.dispose()


def _check_number(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name}={value!r}: give a number greater than 0")
