"""Finds the database that a command works on: a target's, or the one that `--database` names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, TypeVar

import typer
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from consumerkit.cli import target as targets
from consumerkit.errors import ConfigurationError, StartError
from consumerkit.observability.printable import printable
from consumerkit.redaction.database_words import database_words
from consumerkit.redaction.text import redact
from consumerkit.redaction.variables import without_variables
from consumerkit.storage import schema
from consumerkit.storage.database import Database
from consumerkit.storage.location import located
from consumerkit.storage.tables import DEFAULT_PREFIX, Tables
from consumerkit.worker import Worker

T = TypeVar("T")
VARIABLE = "CONSUMERKIT_DATABASE"

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        envvar=VARIABLE,
        help="The database's URL, instead of a target. Put a URL with a password into the variable.",
        show_default=False,
    ),
]
PrefixOption = Annotated[str, typer.Option(metavar="TEXT", help="With --database: the prefix of the tables' names.")]
SchemaOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="With --database: the tables' schema.", show_default="the connection's"),
]


@dataclass(frozen=True)
class TablesPlace:
    """The place of a command's tables: a target, or a URL with prefix and schema."""

    target: str | None
    url: str | None
    tables: Tables


@dataclass(frozen=True)
class Opened:
    """A database with its table definitions, and the target's worker, if a target was given."""

    database: Database
    tables: Tables
    worker: Worker | None = None

    async def run(self, work: Callable[[Session, Tables], T]) -> T:
        """Run work in its own transaction; commit unless it raises."""
        database, tables = self.database, self.tables
        if database.sync_sessions is None:
            return await database.run(lambda session: work(session, tables))
        # Nothing else runs in a command's loop, so blocking it is harmless, and no thread is left
        # behind.
        return database.run_blocking(lambda session: work(session, tables))


def place(
    target: str | None, url: str | None, prefix: str = DEFAULT_PREFIX, schema_name: str | None = None
) -> TablesPlace:
    """Choose between a target and a URL, which may each come from the command line or from a variable.

    The command line overrides a variable.

    Raises:
        ConfigurationError: Both were typed, or neither is given.
    """
    if target and url:
        typed_target = target != os.environ.get(targets.VARIABLE)
        typed_url = url != os.environ.get(VARIABLE)
        if typed_target and typed_url:
            raise ConfigurationError("give either a target or --database, not both")
        target, url = (target, None) if typed_target else (None, url)
    if not target and not url:
        raise ConfigurationError(
            f"no database is named; give a target or --database URL, or set {targets.VARIABLE} or {VARIABLE}"
        )
    if target and (prefix != DEFAULT_PREFIX or schema_name is not None):
        raise ConfigurationError("--prefix and --schema go with --database; a target's worker has its own tables=")
    return TablesPlace(target, url, Tables(prefix=prefix, schema=schema_name))


@asynccontextmanager
async def opened(where: TablesPlace, *, connect: bool = True) -> AsyncIterator[Opened]:
    """Open a place's database; an error of the database becomes a `StartError` of one line.

    Args:
        where: The place.
        connect: Whether to connect and locate the tables at once.

    Raises:
        StartError: The database is out of reach, or refuses a statement.
    """
    if where.url is not None:
        found = Opened(Database(where.url), where.tables)
        async with _closing(found):
            yield await _located(found) if connect else found
        return
    assert where.target is not None
    async with targets.opened(where.target) as worker:
        found = Opened(worker.database, worker.tables, worker)
        async with _closing(found):
            yield await _located(found) if connect else found


async def _located(opened: Opened) -> Opened:
    tables = await opened.run(lambda session, tables: located(session.connection(), tables))
    if opened.worker is not None:
        opened.worker.use(tables)
    return replace(opened, tables=tables)


async def run_checked(where: TablesPlace, work: Callable[[Session, Tables], T]) -> T:
    """Check that a place's tables exist and are up to date, and run work in the same transaction.

    Raises:
        StartError: The database is out of reach or refuses a statement, or the tables are missing,
            older or newer.
    """
    async with opened(where) as found:

        def checked(session: Session, tables: Tables) -> T:
            schema.check(session, tables)
            return work(session, tables)

        return await found.run(checked)


@asynccontextmanager
async def _closing(found: Opened) -> AsyncIterator[None]:
    try:
        yield
    except BrokenPipeError:  # standard output is closed: its reader has ended
        raise
    except (SQLAlchemyError, OSError) as error:
        way_out = "; check the user's rights" if _is_refused(error) else ""
        raise StartError(f"{found.database!r}: {found.database.told(in_one_line(error))}{way_out}") from error
    finally:
        await found.database.dispose()


def _is_refused(error: BaseException) -> bool:
    """Tell whether a right is missing: SQLSTATE 42501, insufficient_privilege."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == "42501"


def in_one_line(error: BaseException) -> str:
    """Return a driver's error as one line, without the statement and its parameters."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    first = database_words(error) or next(iter(str(cause).strip().splitlines()), "")
    return printable(redact(without_variables(first))) or type(cause).__name__
