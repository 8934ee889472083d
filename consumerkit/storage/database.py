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

from sqlalchemy import URL, Engine, ExceptionContext, Pool, QueuePool, create_engine, event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from consumerkit.errors import ConfigurationError
from consumerkit.redaction.database_words import remember
from consumerkit.redaction.text import HIDDEN
from consumerkit.storage import plain_sessions, pooler, postgresql_engine, session_checks, sqlite_engine
from consumerkit.storage.location import located
from consumerkit.storage.tables import Tables
from consumerkit.storage.urls import ParsedUrl, address

T = TypeVar("T")
AsyncSessions = async_sessionmaker[AsyncSession]
SyncSessions = sessionmaker[Session]
Run = Callable[[Callable[[Session], Any]], Awaitable[Any]]
Given = str | URL | Engine | AsyncEngine | SyncSessions | AsyncSessions

# For each name that a URL may have: the driver for coroutines and the driver for threads.
_DRIVERS: dict[str, tuple[str | None, str | None]] = {
    "postgresql": ("postgresql+psycopg", "postgresql+psycopg"),
    "postgresql+psycopg": ("postgresql+psycopg", "postgresql+psycopg"),
    "postgresql+psycopg_async": ("postgresql+psycopg", "postgresql+psycopg"),
    "postgresql+asyncpg": ("postgresql+asyncpg", None),
    "sqlite": ("sqlite+aiosqlite", "sqlite+pysqlite"),
    "sqlite+aiosqlite": ("sqlite+aiosqlite", "sqlite+pysqlite"),
    "sqlite+pysqlite": ("sqlite+aiosqlite", "sqlite+pysqlite"),
}
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
            self._from_url(address(given, _DRIVERS), connections)
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
            _set_up(engine, unprepared=self._unprepared)

    def _from_url(self, found: ParsedUrl, connections: int) -> None:
        url, self._unprepared = pooler.taken_from(found.url)
        async_driver, sync_driver = _DRIVERS[url.drivername]
        options = _options(url, connections)
        postgresql_engine.check_surroundings(url)
        if async_driver == "postgresql+asyncpg":
            url, arguments = postgresql_engine.for_asyncpg(url, found.secrets)
            options["connect_args"] |= arguments
        else:
            if url.get_backend_name() == "postgresql":
                postgresql_engine.for_psycopg(url)
            options["connect_args"] |= found.secrets
        if async_driver is not None:
            made = _made(create_async_engine, url.set(drivername=async_driver), options)
            self._owned.append(made)
            self.async_sessions = async_sessionmaker(made, expire_on_commit=False)
        if sync_driver is not None:
            engine = _made(create_engine, url.set(drivername=sync_driver), options)
            self._owned.append(engine)
            self.sync_sessions = sessionmaker(engine, expire_on_commit=False)

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
        return min((most for engine in self._engines() if (most := _most(engine.pool)) is not None), default=None)

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


def _most(pool: Pool) -> int | None:
    """Return how many connections a pool gives at once; SQLAlchemy has no public name for the allowed overflow."""
    if not isinstance(pool, QueuePool):
        return None
    size, overflow = pool.size(), pool._max_overflow  # noqa: SLF001
    return None if size == 0 or overflow < 0 else size + overflow


def _set_up(engine: Engine, *, unprepared: bool) -> None:
    if not event.contains(engine, "handle_error", _failed):
        event.listen(engine, "handle_error", _failed)
    if engine.dialect.name == "sqlite":
        sqlite_engine.set_up(engine)
    elif engine.dialect.name == "postgresql":
        postgresql_engine.set_up(engine)
        pooler.set_up(engine, off=unprepared)


def _failed(context: ExceptionContext) -> None:
    """Keep the database's error text, to cut it from texts in which a handler repeats it."""
    remember(context.original_exception)


def _options(url: URL, connections: int) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"hide_parameters": True, "connect_args": {"timeout": sqlite_engine.BUSY_MILLISECONDS / 1000}}
    options: dict[str, Any] = {
        "hide_parameters": True,  # parameters are payloads, and would appear in SQLAlchemy's errors and its own log
        "pool_size": connections,
        "max_overflow": 2,
        "pool_timeout": 30,
        "pool_pre_ping": False,
    }
    if "asyncpg" in url.drivername:
        options["connect_args"] = {"timeout": 10}
    else:
        options["connect_args"] = {
            "connect_timeout": 10,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }
    return options


def _made(make: Callable[..., T], url: URL, options: dict[str, Any]) -> T:
    try:
        return make(url, **options)
    except (ArgumentError, ValueError):
        # SQLAlchemy's text quotes the part that it cannot read, which may be part of a password.
        raise ConfigurationError(
            f"database: {url.drivername} does not know a part of the URL; check its port, its path and its parameters"
        ) from None
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        extra = "sqlite" if url.get_backend_name() == "sqlite" else "asyncpg" if "asyncpg" in str(url) else "postgresql"
        raise ConfigurationError(
            f"database: the driver for {url.drivername} is not installed ({error}); pip install 'consumerkit[{extra}]'"
        ) from None


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
