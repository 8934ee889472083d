"""The base of all stages: a database with all tables, and real workers on it."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from sqlalchemy import MetaData

from consumerkit.events import Event, GroupCommitted
from consumerkit.handlers.handler import AnyHandler
from consumerkit.storage.database import Database
from consumerkit.worker import Worker
from tests.services.tables import make_tables

E = TypeVar("E", bound=Event)


@dataclass
class Run:
    """A worker that runs, and what it announced."""

    worker: Worker
    task: asyncio.Task[bool]
    stopping: asyncio.Event
    events: list[Event] = field(default_factory=list)
    has_failed: bool = False

    def seen(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in list(self.events) if isinstance(event, kind)]

    def groups(self) -> list[int]:
        """The sizes of the batches in which something was processed."""
        return [g.processed + g.duplicates + g.duplicates_of_dead + g.dead for g in self.seen(GroupCommitted)]

    async def until(self, condition: Callable[[], bool], what: str, *, within: float = 120.0) -> None:
        """Wait until `condition`, asked in a thread, holds; the worker must not end before."""
        begun = time.monotonic()
        while not await asyncio.to_thread(condition):
            if self.task.done():
                self.task.result()
                raise AssertionError(f"the worker ended before {what}")
            if time.monotonic() > begun + within:
                last = [repr(event) for event in self.events[-8:]]
                raise AssertionError(f"{what}: not within {within:.0f} s; last events: {last}")
            await pause(begun)

    async def failure(self) -> Exception:
        """Wait until the worker ends by itself, and return what it raises; the block then ends without it."""
        await asyncio.wait([self.task], timeout=120)
        error = self.task.exception()
        assert isinstance(error, Exception)
        self.has_failed = True
        return error

    async def stop(self) -> bool:
        """Ask the worker to stop; returns whether it kept to its grace."""
        self.stopping.set()
        return await self.task


async def pause(begun: float) -> None:
    """Wait a twelfth of what was waited before the condition is asked again: to ask costs a busy machine a lot.

    Args:
        begun: When the wait began, on the monotonic clock.
    """
    await asyncio.sleep(max(0.02, min(0.5, (time.monotonic() - begun) / 12)))


async def until_seen(kind: type[E], count: int, *runs: Run) -> list[E]:
    """Wait for so many events of a kind and return them, each run's in order.

    A worker announces what it did after its COMMIT: who has just read it in the database may be earlier.
    """

    def found() -> list[E]:
        return [event for run in runs for event in run.seen(kind)]

    await runs[0].until(lambda: len(found()) >= count, f"{count} times {kind.__name__}")
    return found()


class Stage(ABC):
    """A database and a broker; a subclass chooses them, and queries them for the tests."""

    tables_of_handlers: ClassVar[MetaData]
    """The tables that the tests' handlers write to."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The database's address."""

    async def create_tables(self) -> None:
        """Create our tables and those of the handlers."""
        database = Database(self.url)
        try:
            await database.run(make_tables)
            await database.run(lambda session: self.tables_of_handlers.create_all(session.connection()))
        finally:
            await database.dispose()

    @abstractmethod
    def make(self, *handlers: AnyHandler, **settings: Any) -> Worker:
        """Build a worker on this stage; the settings are the worker's, and a stage's own."""

    @asynccontextmanager
    async def run(self, *handlers: AnyHandler, **settings: Any) -> AsyncIterator[Run]:
        """Run a worker until the block's end; what ends the worker ends the block."""
        events: list[Event] = []
        stopping = asyncio.Event()
        observers = [events.append, *settings.pop("observers", ())]
        settings.setdefault("stall_timeout", 600.0)  # the watchdog would end the tests, not one test
        worker = self.make(*handlers, observers=observers, **settings)
        with self._observed():
            run = Run(worker, asyncio.create_task(worker.run(stopping)), stopping, events)
            try:
                yield run
            except BaseException:
                stopping.set()
                with suppress(BaseException):
                    await asyncio.wait_for(asyncio.shield(run.task), 120)
                raise
            stopping.set()
            if not run.has_failed:
                await run.task

    def _observed(self) -> AbstractContextManager[object]:
        """Keep open what conditions ask, for as long as a worker runs."""
        return nullcontext()
