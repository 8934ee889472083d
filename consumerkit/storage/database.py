"""Access to the user's database by URL, engine or sessionmaker, for coroutines and for threads."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import QueuePool

from consumerkit.errors import ConfigurationError
from consumerkit.redaction.text import HIDDEN
from consumerkit.storage import plain_sessions, session_checks
from consumerkit.storage.location import located
from consumerkit.storage.own_engines import DRIVERS, OwnEngines, limit_of, own_engines, set_up
from consumerkit.storage.tables import Tables
from consumerkit.storage.urls import address

T = TypeVar("T")
AsyncSessions = async_sessionmaker[AsyncSession]
SyncSessions = sessionmaker[Session]
Run = Callable[[Callable[[Session], Any]], Awaitable[Any]]
Given = str | URL | Engine | AsyncEngine | SyncSessions | AsyncSessions

_LET_GO = 5.0
_USUAL_PORTS = (None, 5432, 5433, 6432)


class Database:
    """Makes sessions on the user's database.

    Args:
        given: A URL, an engine or a sessionmaker. From a URL, consumerkit makes its own engines.
            The user configures and disposes of anything else.
        connections: How many connections may be open at once, if consumerkit makes the engine.

    Attributes:
        answered: When it last answered a request that `run` or `transaction` made, by the monotonic clock.

    Raises:
        ConfigurationError: The URL cannot be read, names an unsupported database, or its driver is not installed.
    """

    def __init__(self, given: Given, *, connections: int = 5) -> None:
        self.answered = time.monotonic()
        self._owned: list[AsyncEngine | Engine] = []
        self.async_sessions: AsyncSessions | None = None
        self.sync_sessions: SyncSessions | None = None
        self._unprepared = False
        if isinstance(given, str | URL):
            self._take(own_engines(address(given, DRIVERS), connections))
        elif isinstance(given, AsyncEngine):
            self.async_sessions = async_sessionmaker(given, expire_on_commit=False)
        elif isinstance(given, Engine):
            self.sync_sessions = sessionmaker(given, expire_on_commit=False)
        elif isinstance(given, async_sessionmaker):
            self.async_sessions = given
        elif isinstance(given, sessionmaker):
            self.sync_sessions = given
        else:
            raise ConfigurationError(
                f"database={type(given).__name__}: give a URL, an Engine, an AsyncEngine, a sessionmaker or an "
                "async_sessionmaker"
            )
        if isinstance(given, sessionmaker | async_sessionmaker):
            session_checks.check(given, self._engine)
        self.dialect_name = self._engine().dialect.name
        for engine in self._engines():
            set_up(engine, unprepared=self._unprepared)

    def _take(self, made: OwnEngines) -> None:
        self._unprepared = made.unprepared
        if made.coroutines is not None:
            self._owned.append(made.coroutines)
            self.async_sessions = async_sessionmaker(made.coroutines, expire_on_commit=False)
        if made.threads is not None:
            self._owned.append(made.threads)
            self.sync_sessions = sessionmaker(made.threads, expire_on_commit=False)

    # consumerkit's own transactions run no code of the user's session class.

    @cached_property
    def _plain_async(self) -> AsyncSessions | None:
        given = self.async_sessions
        return None if given is None else plain_sessions.for_coroutines(given.kw["bind"])

    @cached_property
    def _plain_sync(self) -> SyncSessions | None:
        given = self.sync_sessions
        return None if given is None else plain_sessions.for_threads(given.kw["bind"])

    def _engines(self) -> list[Engine]:
        found = []
        if self.async_sessions is not None:
            bind = self.async_sessions.kw.get("bind")
            found.append(bind.sync_engine if isinstance(bind, AsyncEngine) else None)
        if self.sync_sessions is not None:
            found.append(self.sync_sessions.kw.get("bind"))
        if not found or not all(isinstance(engine, Engine) for engine in found):
            raise ConfigurationError("database: the sessionmaker is bound to no engine; give it bind=engine")
        return [engine for engine in found if engine is not None]

    def _engine(self) -> Engine:
        return self._engines()[0]

    @property
    def pooled(self) -> int | None:
        """How many connections the pool gives at once; None if it sets no limit."""
        return min((most for engine in self._engines() if (most := limit_of(engine.pool)) is not None), default=None)

    @property
    def used_up(self) -> int | None:
        """How many connections the pool gives, if all of them are in use; else None."""
        pool = self._engine().pool
        most = limit_of(pool)
        return most if isinstance(pool, QueuePool) and most is not None and pool.checkedout() >= most else None

    @property
    def runs_in_threads(self) -> bool:
        """Whether `run` occupies a thread, which cannot be given up."""
        return self._plain_async is None

    def __repr__(self) -> str:
        # Without the query, since it may hold a password too. Without a port if there is no user:
        # `app:54321/shop` may be a user and a password whose @ was forgotten.
        url = self._engine().url.set(query={})
        if self._unsaid is not None:
            url = url._replace(port=None)  # `set` reads None as "unchanged"
        return f"Database({url.render_as_string(hide_password=True)})"

    @property
    def _unsaid(self) -> str | None:
        url = self._engine().url
        return None if url.username is not None or url.port in _USUAL_PORTS else str(url.port)

    def told(self, words: str) -> str:
        """Return a driver's words without the parts that the representation leaves out."""
        return words if self._unsaid is None else re.sub(rf"\b{self._unsaid}\b", HIDDEN, words)

    @property
    def location(self) -> str:
        """The database's name; on SQLite the path of its file with all links resolved."""
        name = self._engine().url.database or ""
        if self.dialect_name != "sqlite" or name in ("", ":memory:"):
            return name
        if not name.startswith("file:"):
            return os.path.realpath(name)
        found = urlsplit(name)
        in_memory = "mode=memory" in found.query or found.path in ("", ":memory:")
        return "" if in_memory else os.path.realpath(unquote(found.path))

    async def locate(self, tables: Tables) -> Tables:
        """Return the tables under the schema in which this database has them; see `location.located`."""
        return await self.run(lambda session: located(session.connection(), tables))

    async def run(self, work: Callable[[Session], T], *, within: float | None = None) -> T:
        """Run synchronous work in a transaction of its own, from a coroutine; commit unless it raises.

        PostgreSQL ends the transaction after `within` seconds without activity, a minute if None. A
        frozen process keeps its locks no longer than that.

        Raises:
            TimeoutError: The work took longer than `within` seconds; the connection is discarded.
        """
        if self._plain_async is None:
            async with asyncio.timeout(within):
                return await asyncio.to_thread(self.run_blocking, work, idle=within)
        async with self._left_if_silent() as session, asyncio.timeout(within):
            plain_sessions.limit(session.sync_session, within)
            with _cancelled_as_such():
                result = await session.run_sync(work)
                await session.run_sync(plain_sessions.commit)
            self.answered = time.monotonic()
            return result

    @asynccontextmanager
    async def transaction(self, *, within: float | None = None) -> AsyncIterator[Run]:
        """Keep one transaction open for several pieces of synchronous work; commit unless something raises.

        Raises:
            TimeoutError: With a driver for coroutines, a piece of work or the commit took longer
                than `within` seconds; the connection is discarded. With a driver for threads
                nothing is cut short.
        """
        if self._plain_async is not None:
            async with self._left_if_silent() as session:

                async def run(work: Callable[[Session], Any]) -> Any:
                    async with asyncio.timeout(within):
                        result = await session.run_sync(work)
                    self.answered = time.monotonic()
                    return result

                yield run
                async with asyncio.timeout(within):
                    await session.run_sync(plain_sessions.commit)
            return
        assert self._plain_sync is not None
        with self._plain_sync() as held:
            yield lambda work: asyncio.to_thread(work, held)
            plain_sessions.commit(held)

    @asynccontextmanager
    async def _left_if_silent(self) -> AsyncIterator[AsyncSession]:
        """Close a session at the end; discard its connection if the wait for it was given up."""
        assert self._plain_async is not None
        session = self._plain_async()
        try:
            yield session
        except (TimeoutError, asyncio.CancelledError):
            # A silent server does not answer ROLLBACK either, and nothing would end the wait for
            # it.
            with suppress(Exception):
                await asyncio.wait_for(session.invalidate(), _LET_GO)
            raise
        finally:
            await _closed(session)

    def run_blocking(self, work: Callable[[Session], T], *, idle: float | None = None) -> T:
        """Run synchronous work in a transaction of its own, from a thread; commit unless it raises.

        Without a driver for threads (asyncpg) it starts an event loop, so do not call it within
        one. The server ends the transaction after `idle` seconds without activity; a minute if
        None.
        """
        if self._plain_sync is None:
            return asyncio.run(self._run_and_dispose(work))
        with self._plain_sync() as session:
            plain_sessions.limit(session, idle)
            result = work(session)
            plain_sessions.commit(session)
            self.answered = time.monotonic()
            return result

    async def _run_and_dispose(self, work: Callable[[Session], T]) -> T:
        try:
            return await self.run(work)
        finally:
            await self.dispose()

    async def dispose(self) -> None:
        """Close the connections of engines that consumerkit made."""
        for engine in self._owned:
            if isinstance(engine, AsyncEngine):
                await engine.dispose()
            else:
                engine.dispose()


@contextmanager
def _cancelled_as_such() -> Iterator[None]:
    """Raise `CancelledError` if a cancellation broke the connection and the resulting error hides it."""
    try:
        yield
    except Exception as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from error
        raise


async def _closed(session: AsyncSession) -> None:
    """Close a session, with a time limit.

    `asyncio.wait_for` does not serve here: on Python 3.11 it swallows a cancellation that comes at
    the moment the session is closed (python/cpython#86296), and a task that works in a loop would
    go on.
    """
    closing = asyncio.ensure_future(session.close())
    try:
        async with asyncio.timeout(_LET_GO):
            await asyncio.shield(closing)
    except TimeoutError:
        closing.cancel()
