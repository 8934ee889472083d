"""Clients of a database, each with one session in a thread of its own, whatever the driver: the same synchronous work
runs through a sync driver, or through an async one with `run_sync`."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy import URL, Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from consumerkit.storage.database import Database, Given

T = TypeVar("T")
WITHIN = 30.0


class DatabaseClient:
    """One client: it does all work in order, in one session.

    Args:
        given: What `Database` takes.
        coroutines: Whether to use the async driver.
    """

    def __init__(self, given: Given, *, coroutines: bool) -> None:
        self.database = Database(given, connections=1)
        self._coroutines = coroutines
        if coroutines:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever)
            self._thread.start()
            assert self.database.async_sessions is not None
            self._async_session = self.database.async_sessions()
        else:
            self._pool = ThreadPoolExecutor(1)
            assert self.database.sync_sessions is not None
            self._session = self.database.sync_sessions()

    def start(self, work: Callable[[Session], T]) -> Future[T]:
        """Start work without waiting for it."""
        if not self._coroutines:
            return self._pool.submit(work, self._session)
        return asyncio.run_coroutine_threadsafe(self._async_session.run_sync(work), self._loop)

    def do(self, work: Callable[[Session], T]) -> T:
        """Do work, and return its result."""
        return self.start(work).result(WITHIN)

    def execute(self, statement: str, **parameters: object) -> None:
        """Execute one statement."""
        self.do(lambda session: session.execute(text(statement), parameters))

    def scalar(self, statement: str, **parameters: object) -> object:
        """Execute one statement; return its first row's first column."""
        return self.do(lambda session: session.scalar(text(statement), parameters))

    def commit(self) -> None:
        self.do(Session.commit)

    def rollback(self) -> None:
        self.do(Session.rollback)

    def pid(self) -> int:
        """The number of the server's process behind this connection."""
        found = self.scalar("SELECT pg_backend_pid()")
        assert isinstance(found, int)
        return found

    def close(self, engine: Engine | AsyncEngine | None = None) -> None:
        """Close the session, its connection, and an engine that was given."""
        self.start(Session.close).exception(WITHIN)
        if not self._coroutines:
            self._pool.shutdown()
            asyncio.run(self.database.dispose())
            if isinstance(engine, Engine):
                engine.dispose()
            return
        asyncio.run_coroutine_threadsafe(self.database.dispose(), self._loop).result(WITHIN)
        if isinstance(engine, AsyncEngine):
            asyncio.run_coroutine_threadsafe(engine.dispose(), self._loop).result(WITHIN)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WITHIN)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Venue:
    """A database with our tables, and a way to it.

    Args:
        url: Where it is; from it each client makes an engine of its own.
        coroutines: Whether clients use the async driver.
    """

    def __init__(self, url: URL, *, coroutines: bool) -> None:
        self.url = url
        self.coroutines = coroutines

    def client(self, url: URL | None = None) -> DatabaseClient:
        """A new client."""
        return DatabaseClient(url or self.url, coroutines=self.coroutines)
