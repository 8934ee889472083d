"""The SQLite file of the runs: what the handler wrote there, and what is still to be done."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

from consumerkit.storage import schema
from consumerkit.storage.database import Database
from consumerkit.storage.tables import DEFAULT_TABLES

Row = tuple[Any, ...]
_LONG_AGO = "2000-01-01 00:00:00.000000"


class Contents:
    """The rows of one table, as a multiset.

    Attributes:
        columns: The compared columns.
        rows: How often each row is there.
    """

    def __init__(self, columns: tuple[str, ...], rows: Counter[Row]) -> None:
        self.columns = columns
        self.rows = rows


class RunFile:
    """A SQLite file for each run, one after the other.

    Args:
        directory: Where the files are.
        is_async: Whether coroutine handlers use them, or plain ones.

    Attributes:
        engine: The engine of the workers. All runs share it, since SQLAlchemy compiles each
            statement once for an engine; it connects to the file of the present run.
    """

    def __init__(self, directory: Path, *, is_async: bool) -> None:
        self._directory = directory
        self._path = self._empty = directory / "empty.db"
        driver = "sqlite+aiosqlite" if is_async else "sqlite"
        url = f"{driver}:///{self._empty}"
        self.engine: Engine | AsyncEngine = create_async_engine(url) if is_async else create_engine(url)
        events_of = self.engine.sync_engine if isinstance(self.engine, AsyncEngine) else self.engine
        event.listen(events_of, "do_connect", self._connect_to_present)
        event.listen(events_of, "connect", self._connected)
        self._database = Database(self.engine)
        self._opened: list[Any] = []

    @property
    def url(self) -> str:
        """The address of the present file."""
        return f"sqlite:///{self._path}"

    def _connect_to_present(self, _dialect: object, _record: object, arguments: list[Any], _named: object) -> None:
        arguments[0] = str(self._path)

    def _connected(self, connection: Any, _record: object) -> None:
        if isinstance(self.engine, AsyncEngine):
            self._opened.append(connection.driver_connection)

    async def make(self, metadata: MetaData | None) -> None:
        """Create consumerkit's tables and the user's, in the file that is copied for each run."""

        def work(session: Session) -> None:
            schema.apply(session)
            if metadata is not None:
                metadata.create_all(session.connection())

        await self._database.run(work)
        await self.close()

    async def begin(self, number: int, setup: Callable[[Session], object] | None) -> None:
        """Go on to the file of the next run, in which `setup` adds rows."""
        # Not the same file again: a killed worker may leave a connection open.
        self._path = self._directory / f"run{number}.db"
        shutil.copy(self._empty, self._path)
        if setup is not None:
            await self._database.run(setup)

    async def close(self) -> None:
        """Close all connections, as the end of a process does."""
        if isinstance(self.engine, AsyncEngine):
            await self.engine.dispose()
        else:
            self.engine.dispose()
        # A killed worker's task may have been cancelled with a connection in its hands. All end at once, since one
        # may wait for another's lock.
        await asyncio.gather(*map(_ended, self._opened))
        self._opened.clear()

    def contents(self, ignore: Collection[str]) -> dict[str, Contents]:
        """Return the rows of each table of the user's, without the ignored columns and tables."""
        with closing(sqlite3.connect(self._path)) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            ours = DEFAULT_TABLES.prefix
            users = [one for one in sorted(names) if not one.startswith((ours, "sqlite_")) and one not in ignore]
            return {name: _contents(connection, name, ignore) for name in users}

    def columns(self) -> set[str]:
        """Return the names of the user's tables, and of their columns as `table.column`."""
        found = self.contents(())
        return {*found, *(f"{name}.{column}" for name, one in found.items() for column in one.columns)}

    def waiting(self) -> str:
        """Return what is still to be done, in words; empty if nothing is."""
        with closing(sqlite3.connect(self._path)) as connection:
            counted = {what: _count(connection, query) for what, query in _left_to_do().items()}
        return ", ".join(f"{count} {what}" for what, count in counted.items() if count)

    def dead(self) -> dict[str, str]:
        """Return the reason of each dead letter, by its message ID; empty for a message without one."""
        query = DEFAULT_TABLES.dead_letters.select().with_only_columns(
            DEFAULT_TABLES.dead_letters.c.message_id, DEFAULT_TABLES.dead_letters.c.reason
        )
        with closing(sqlite3.connect(self._path)) as connection:
            return {name or "": reason for name, reason in connection.execute(str(query))}

    def pass_time(self) -> None:
        """Let the deadlines pass of steps that are under way; does nothing while another connection writes."""
        steps, parked = DEFAULT_TABLES.message_steps.name, DEFAULT_TABLES.parked_messages.name
        letters = DEFAULT_TABLES.dead_letters.name
        statements = (
            f"UPDATE {steps} SET deadline_at = ? WHERE state = 'started'",  # noqa: S608 - a name of our own
            f"UPDATE {steps} SET undo_at = ? WHERE undo_at IS NOT NULL",  # noqa: S608 - a name of our own
            f"UPDATE {letters} SET hook_at = ? WHERE hook_at IS NOT NULL",  # noqa: S608 - a name of our own
            f"UPDATE {parked} SET due_at = ?",  # noqa: S608 - a name of our own
        )
        with (
            suppress(sqlite3.OperationalError),  # locked
            closing(sqlite3.connect(self._path, timeout=0)) as connection,
            connection,
        ):
            for statement in statements:
                connection.execute(statement, (_LONG_AGO,))


@cache  # it is asked for every few milliseconds
def _left_to_do() -> dict[str, str]:
    """Return the queries for what is still to be done."""
    tables = DEFAULT_TABLES
    queries = {
        "parked messages": tables.parked_messages.select(),
        "messages in the outbox": tables.outbox_messages.select(),
        "steps to undo": tables.message_steps.select().where(tables.message_steps.c.undo_at.is_not(None)),
        "calls of on_dead_letter": tables.dead_letters.select().where(tables.dead_letters.c.hook_at.is_not(None)),
    }
    return {what: str(query) for what, query in queries.items()}


async def _ended(connection: Any) -> None:
    with suppress(Exception):
        await connection.rollback()  # SQLite keeps the lock of a connection whose last statement is still open
    with suppress(Exception):
        await connection.close()


def _contents(connection: sqlite3.Connection, table: str, ignore: Collection[str]) -> Contents:
    found = connection.execute(f'SELECT * FROM "{table}" LIMIT 0').description  # noqa: S608 - a name that the database told
    columns = tuple(one[0] for one in found if f"{table}.{one[0]}" not in ignore)
    if not columns:
        return Contents((), Counter({(): connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]}))  # noqa: S608
    wanted = ", ".join(f'"{one}"' for one in columns)
    return Contents(columns, Counter(connection.execute(f'SELECT {wanted} FROM "{table}"')))  # noqa: S608


def _count(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM ({query})").fetchone()[0])  # noqa: S608 - a query of our own
