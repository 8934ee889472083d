"""Runs `prepare` for the messages of a lane's next transaction, before that transaction begins."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context as Surroundings
from contextvars import copy_context
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from consumerkit import events
from consumerkit.concurrency import in_thread
from consumerkit.errors import ConfigurationError, Fenced, Unavailable
from consumerkit.events import Announcer
from consumerkit.handlers.declaration import Declaration
from consumerkit.handlers.effects import Effects, PlainEffects
from consumerkit.steps.journal import InTransaction, Journal, Unwritten
from consumerkit.steps.message_steps import MessageSteps
from consumerkit.steps.subject import Place, Prepared, Subject
from consumerkit.storage.fence import Owners
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.step_values import FoundStep, Name
from consumerkit.storage.steps import StepRows

T = TypeVar("T")
_MOST_FAILED: Final = 10_000


class HandlerSteps:
    """The resources that all lanes of a handler share: the limit of calls, and the threads of plain calls.

    Attributes:
        declared: The handler's declarations.
        slots: One for each call that may be under way.
        threads: Run plain `prepare` methods; None for coroutines.
        undo_due: Set when there may be steps to undo.
        unwritten: Outcomes to write yet.
    """

    def __init__(self, declared: Declaration) -> None:
        self.declared = declared
        self.name = declared.name
        self.is_async = declared.is_async
        self.slots = asyncio.Semaphore(declared.step_concurrency)
        self.undo_due = asyncio.Event()
        self.unwritten = Unwritten()
        threads = f"consumerkit-{declared.name}-steps"
        self.threads = None if declared.is_async else ThreadPoolExecutor(declared.step_concurrency, threads)

    def close(self) -> None:
        """End the threads."""
        if self.threads is not None:
            self.threads.shutdown(wait=False, cancel_futures=True)


class LaneSteps:
    """The steps of one lane's messages.

    Args:
        shared: The resources that the handler's lanes share.
        rows: The statements of the record.
        lot: The parking lot.
        run: Runs work in a transaction of its own.
        announce: Announces events.
        limit: Seconds that `prepare` may take beside its steps.
    """

    def __init__(
        self,
        shared: HandlerSteps,
        rows: StepRows,
        lot: ParkingLot,
        run: InTransaction,
        announce: Announcer,
        limit: float,
    ) -> None:
        self.shared = shared
        self._lot = lot
        self.journal = Journal(rows, run, shared.unwritten)
        self.announce = announce
        self.limit = limit
        self.called = self.reused = self.failed = 0
        self.ends: dict[tuple[int, str], float] = {}
        """When the deadlines of plain calls under way pass, by the monotonic clock."""
        self._failed: dict[Place, BaseException] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def overdue_since(self) -> float | None:
        """Since when a plain call is past its deadline, by the monotonic clock; any thread may ask."""
        first = min(self.ends.copy().values(), default=None)
        return None if first is None or first > time.monotonic() else first

    async def prepare(
        self, subjects: Sequence[Subject], owners: Owners, surroundings: Callable[[bytes], Surroundings]
    ) -> list[Prepared]:
        """Run `prepare` for messages that the ledger does not know.

        A message whose `prepare` raised gets the same error again, without another call, until it comes alone.

        Args:
            subjects: In the order of the log, each message ID once.
            owners: The tokens by which we own their partitions.
            surroundings: Makes the context in which the code of the message with this digest runs.

        Returns:
            The result for each, in order; messages whose order puts them behind a failed one did not run.

        Raises:
            Fenced: A partition is no longer ours.
            Unavailable: The database is in trouble.
        """
        self._loop = asyncio.get_running_loop()
        self.journal.owners, self.journal.fenced = owners, False
        began = time.monotonic()
        unknown, memo = await self.journal.ask(lambda connection: self._look(connection, subjects))
        steps: defaultdict[bytes, dict[str, FoundStep]] = defaultdict(dict)
        for (digest, name), found in memo.items():
            steps[digest][name] = found
        made = [Prepared(MessageSteps(self, one, steps[one.digest])) for one in subjects]
        chains: defaultdict[Any, list[int]] = defaultdict(list)
        for index, one in enumerate(subjects):
            if one.digest in unknown:
                chains[index if one.order is None else ("in order", one.order)].append(index)
        alone = len(subjects) == 1
        await self._together([self._chain(made, chain, surroundings, alone=alone) for chain in chains.values()])
        self.tell(time.monotonic() - began)
        for each in made:
            if isinstance(each.error, Fenced | Unavailable):
                raise each.error
        return made

    def unprepared(self, subjects: Sequence[Subject], owners: Owners) -> list[Prepared]:
        """Return the steps of messages whose handler has no `prepare`: `handle` runs them."""
        self._loop = asyncio.get_running_loop()
        self.journal.owners = owners
        made = [Prepared(MessageSteps(self, subject, {})) for subject in subjects]
        for one in made:
            one.calls.prepared = True
        return made

    def _look(self, connection: Connection, subjects: Sequence[Subject]) -> tuple[set[bytes], dict[Name, FoundStep]]:
        rows, digests = self.journal.rows, [one.digest for one in subjects]
        fresh = [one.digest for one in subjects if one.waits is None]
        unknown = rows.unknown(connection, fresh, revives=self.shared.declared.runs_resends)
        # A parked message that was tried or removed since is left out; the transaction does not run it either.
        unknown |= {one.digest for one in subjects if one.waits is not None and self._lot.lock(connection, one.waits)}
        return unknown, rows.read(connection, digests)

    async def _chain(
        self,
        made: list[Prepared],
        chain: Sequence[int],
        surroundings: Callable[[bytes], Surroundings],
        *,
        alone: bool,
    ) -> None:
        for index in chain:
            calls = made[index].calls
            place = calls.subject.place
            error = self._failed.pop(place, None)
            if error is None:
                task = asyncio.create_task(calls.ended(self._one(calls)), context=surroundings(calls.subject.digest))
                try:
                    error = await task
                except asyncio.CancelledError:
                    task.cancel()
                    raise
            if error is not None:
                made[index] = Prepared(calls, error)
                if not alone and not isinstance(error, Fenced | Unavailable) and len(self._failed) < _MOST_FAILED:
                    self._failed[place] = error
                return
            calls.prepared = True

    async def _one(self, calls: MessageSteps) -> BaseException | None:
        """Run one `prepare` and return its error: a SystemExit raised by a task would end the event loop."""
        prepare: Any = self.shared.declared.prepare
        limit = asyncio.timeout(self.limit)
        kind = Effects if self.shared.is_async else PlainEffects
        effects = kind(calls, calls.subject.message_id)
        try:
            if self.shared.threads is not None:
                run = asyncio.get_running_loop().run_in_executor
                # The task's own context hides the values that this message sets from others.
                await run(self.shared.threads, in_thread, copy_context().run, prepare, calls.subject.event, effects)
            else:
                async with limit:
                    with calls.bounded(limit):
                        await prepare(calls.subject.event, effects)
            calls.check()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return _contained(error)
        except TimeoutError as error:
            if limit.expired():
                return TimeoutError(f"prepare took longer than {self.limit:g} s beside its steps")
            return error
        except Exception as error:  # noqa: BLE001 - the message's caller decides on it
            return calls.failure or error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a handler that calls sys.exit must not take its process along
            return _contained(error)
        finally:
            effects.close()
        return None

    async def _together(self, chains: Sequence[Coroutine[Any, Any, None]]) -> None:
        tasks = [asyncio.create_task(chain) for chain in chains]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        for task in tasks:
            task.result()

    def tell(self, seconds: float) -> None:
        """Announce how many steps were called, reused and failed since the last announcement."""
        if self.called or self.reused or self.failed:
            self.announce(
                events.StepsRun(
                    handler=self.shared.name,
                    called=self.called,
                    reused=self.reused,
                    failed=self.failed,
                    seconds=seconds,
                )
            )
            self.called = self.reused = self.failed = 0

    def refuse_inside(self, step: str) -> None:
        """Refuse a step within a transaction if the database has a single writer.

        Raises:
            ConfigurationError: The database has a single writer.
        """
        if self.journal.rows.dialect.single_writer:
            raise ConfigurationError(
                f"handler {self.shared.name!r}: context.run(step {step!r}) cannot write while its transaction is "
                "open, since SQLite has one writer; run it in prepare"
            )

    # For threads.

    def from_thread(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the worker's event loop, from a thread; return its result.

        Raises:
            Unavailable: The worker stops.
        """
        with self._lock:
            if self._closed or self._loop is None or self._loop.is_closed():
                work.close()
                raise Unavailable("the record of steps was not written, because the worker stops")
            asked = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._asked.add(asked)
        try:
            return asked.result()
        except asyncio.CancelledError as error:
            raise Unavailable("the record of steps was not written, because the worker stops") from error
        finally:
            with self._lock:
                self._asked.discard(asked)

    def tell_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in the worker's event loop soon, from a thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def close(self) -> None:
        """Release waiting threads and end the step threads."""
        with self._lock:
            self._closed = True
            asked = list(self._asked)
        for one in asked:
            one.cancel()
        self.shared.close()


def _contained(error: BaseException) -> Exception:
    made = RuntimeError(f"prepare raised {type(error).__name__}")
    made.__cause__ = error
    return made
