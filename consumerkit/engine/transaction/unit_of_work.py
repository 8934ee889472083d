"""Runs one transaction from claim to COMMIT, in one form for coroutines and one for threads.

The order is claim, handle, flush, outbox, finalise, COMMIT. Shared code is in `engine.transaction`. This file holds
both forms side by side, so that a change that is missing in one of them shows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from consumerkit.concurrency import wait_uncancelled
from consumerkit.engine.transaction.batch import Batch, Flush
from consumerkit.engine.transaction.commit import (
    being_cancelled,
    closing,
    closing_in_thread,
    keeping,
    raise_contained,
)
from consumerkit.engine.transaction.fresh_context import FreshContexts, in_context
from consumerkit.engine.transaction.guard import guard
from consumerkit.engine.transaction.outside_waits import watch
from consumerkit.engine.transaction.receipt import Receipt
from consumerkit.engine.transaction.session_calls import SessionCalls, watching
from consumerkit.engine.transaction.statement_clock import DatabaseSilent
from consumerkit.engine.transaction.transaction import Transaction, TransactionEnded
from consumerkit.error_tree import is_a, leaves
from consumerkit.errors import CommitUnknown
from consumerkit.failpoints import reach
from consumerkit.handlers.declaration import Declaration
from consumerkit.handlers.methods import method_of
from consumerkit.observability import current_message
from consumerkit.storage import plain_sessions
from consumerkit.storage.database import AsyncSessions, SyncSessions
from consumerkit.storage.faults import Fault, fault_of


class UnitOfWork(Protocol):
    """Runs a batch in one transaction; returns if it is durable, raises if it is not or may not be."""

    async def run(self, batch: Batch) -> Receipt:
        """Run the batch; return its receipt.

        Raises:
            CommitUnknown: COMMIT was sent, but its answer did not come.
            BaseException: The failure; everything is rolled back, and `batch.current` tells which item's code ran.
        """

    async def dead_letter_misuse(self, batch: Batch, error: TransactionEnded) -> Receipt:
        """Dead-letter, in a separate transaction, what a handler committed by itself; see `Batch.misused`."""
        ...

    def close(self) -> None:
        """End the threads."""


class AsyncUnitOfWork:
    """Runs coroutine handlers."""

    def __init__(
        self, sessions: AsyncSessions, transaction: Transaction, declared: Declaration, deadline: float
    ) -> None:
        self._sessions = sessions
        self._transaction = transaction
        self._declared = declared
        self._deadline = deadline
        self._invoke: Callable[..., Any] = _method(declared)
        self._tell: Any = declared.on_duplicate
        self._contexts = FreshContexts()
        self._bind: AsyncEngine = sessions.kw["bind"]
        self._engine = self._bind.sync_engine

    async def run(self, batch: Batch) -> Receipt:
        """See `UnitOfWork.run`."""
        async with closing(self._sessions(), self._declared.name) as session:
            try:
                await self._run(session, batch)
            except BaseException as error:
                batch.guard.open = False
                if (
                    any(is_a(leaf, TimeoutError) for leaf in leaves(error))
                    and batch.handling
                    and self._is_silent(batch)
                ):
                    await session.invalidate()
                    waited = batch.guard.statements.waited()
                    raise DatabaseSilent(f"the database has not answered for {waited:.0f} s") from error
                if batch.handling and not batch.guard.ended and not being_cancelled():
                    await session.run_sync(self._transaction.check, batch)
                if (not batch.sound and (_is_lost(error, batch) or batch.guard.broken)) or _is_littered(error, batch):
                    await session.invalidate()
                raise_contained(error, cancelled=being_cancelled())
            finally:
                batch.end()
        batch.stages.over("commit")
        return batch.receipt()

    def _is_silent(self, batch: Batch) -> bool:
        """Distinguish a stalled or overloaded database from a handler that itself took too long.

        Our deadline passes before the server's limit for the statement, which began later.
        """
        return batch.guard.statements.waited() > self._deadline / 2

    async def _run(self, session: AsyncSession, batch: Batch) -> None:
        batch.guard = guard(session.sync_session, self._engine)
        # A server may fall silent at any request; its own limits do not help then.
        async with asyncio.timeout(self._deadline):
            await session.run_sync(self._transaction.open, batch)
        batch.handling = True
        async with asyncio.timeout(self._deadline) as timeout:
            batch.guard.statements.limit = timeout
            with watching(session) as calls:
                await self._handle(session, batch, calls, partial(_rearm, timeout, self._deadline))
        batch.guard.check()
        batch.handling = False
        async with asyncio.timeout(self._deadline):
            await session.run_sync(self._transaction.close, batch)
        batch.guard.seal()
        await self._commit(session, batch)

    async def _handle(
        self, session: AsyncSession, batch: Batch, calls: SessionCalls, rearm: Callable[[], None]
    ) -> None:
        declared, transaction = self._declared, self._transaction
        running = batch.running()
        held: list[object] = []
        if declared.prefetch is not None and running:
            with keeping(session.sync_session, held):
                events = [item.event for item in running]
                await in_context(self._contexts.new(), declared.prefetch, events, session)
                calls.check("prefetch")
        if declared.is_batch:
            if running:
                with batch.whole(running):
                    own, received, surroundings = (
                        self._contexts.new(),
                        batch.received(running),
                        batch.batch_context(session),
                    )
                    batch.spans.whole(running, own)
                    await in_context(own, self._invoke, received, surroundings)
                    calls.check("handle_batch")
            return
        watched = watch(batch.sharing, batch.guard, self._invoke)
        for item in batch.each():
            own = self._contexts.new()
            batch.spans.enter(item, own)
            current_message.enter(own, declared.name, item.message, item.message_id, item.attempt)
            if watched is not None:
                watched.steps = item.steps
            if declared.session_setup is not None:
                await in_context(own, declared.session_setup, item.event, session, watch=watched)
                calls.check("session_setup")
            reach("in_handler")
            context = batch.context(item, session)
            if item.repeats:
                result = await in_context(own, self._tell, item.event, batch.first_result(item), context, watch=watched)
                calls.check("on_duplicate")
            else:
                handle = in_context(own, self._invoke, item.event, context, watch=watched)
                result = await (handle if item.steps is None else item.steps.after(handle))
                calls.check("handle")
            batch.guard.check()
            own.run(batch.handled_one, item, result)
            batch.spans.leave("duplicate" if item.repeats else "processed")
            if batch.flush is Flush.PROBE:
                await session.run_sync(transaction.probe)
                rearm()
            elif batch.flush is Flush.EACH:
                await session.flush()
        del held

    async def _commit(self, session: AsyncSession, batch: Batch) -> None:
        """Commit, shielded from cancellation, and wait no longer than the deadline for the answer."""
        name, seen = self._declared.name, batch.guard.commit
        commit = asyncio.ensure_future(_committed(session))
        try:
            # One turn of the loop sends COMMIT.
            await asyncio.sleep(0)
            reach("commit_sent")
        except BaseException as error:
            # Before the answer the session must not be closed, and the lane does not know its count.
            await wait_uncancelled(commit, self._deadline)
            if isinstance(error, Exception):
                raise CommitUnknown("an error came between COMMIT and its answer") from error
            raise
        if await wait_uncancelled(commit, self._deadline):
            seen.conclude(name, commit.result())
            return
        commit.cancel()
        # psycopg tries for 5 s to cancel on the server; until that ends the session cannot be closed.
        await wait_uncancelled(commit, 10.0)
        late = f"commit() did not return within {self._deadline:g} s"
        if seen.durable:
            seen.tell(name, TimeoutError(late))
            return
        with suppress(Exception):
            await asyncio.wait_for(session.invalidate(), 5.0)
        raise CommitUnknown(late)

    async def dead_letter_misuse(self, batch: Batch, error: TransactionEnded) -> Receipt:
        """See `UnitOfWork.dead_letter_misuse`."""
        # Not a session of the user's class, whose hooks are only for handlers.
        async with plain_sessions.for_coroutines(self._bind)() as session:
            await session.run_sync(self._transaction.dead_letter_misuse, batch, error)
            await session.run_sync(plain_sessions.commit)
        return batch.receipt_of_misused()

    def close(self) -> None:
        """See `UnitOfWork.close`."""


class SyncUnitOfWork:
    """Runs plain handlers: each lane has its own thread, in which a batch runs from BEGIN to COMMIT."""

    def __init__(
        self, sessions: SyncSessions, transaction: Transaction, declared: Declaration, deadline: float
    ) -> None:
        self._sessions = sessions
        self._transaction = transaction
        self._declared = declared
        self._deadline = deadline
        self._invoke: Callable[..., Any] = _method(declared)
        self._tell: Any = declared.on_duplicate
        self._contexts = FreshContexts()
        self._engine: Engine = sessions.kw["bind"]
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"consumerkit-{declared.name}")

    async def run(self, batch: Batch) -> Receipt:
        """See `UnitOfWork.run`."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, self._run, batch)
        # A thread cannot be cancelled. A cancelled lane waits for it, and the watchdog ends a stuck process.
        await wait_uncancelled(work, None)
        work.result()
        batch.stages.over("commit")
        return batch.receipt()

    def _run(self, batch: Batch) -> None:
        with closing_in_thread(self._sessions(), self._declared.name) as session:
            try:
                batch.guard = guard(session, self._engine)
                self._transaction.open(session, batch)
                batch.handling = True
                self._handle(session, batch)
                batch.guard.check()
                batch.handling = False
                self._transaction.close(session, batch)
                batch.guard.seal()
                batch.guard.commit.conclude(self._declared.name, _outcome(session.commit))
            except BaseException as error:  # noqa: BLE001 - raised again, contained
                batch.guard.open = False
                if batch.handling and not batch.guard.ended:
                    self._transaction.check(session, batch)
                if batch.guard.broken or _is_littered(error, batch):
                    session.invalidate()
                elif not batch.sound and _is_lost(error, batch):
                    session.invalidate()
                    if not isinstance(error, CommitUnknown):
                        self._refuse_slow(batch)
                raise_contained(error, cancelled=False)
            finally:
                batch.end()

    def _refuse_slow(self, batch: Batch) -> None:
        """Raise `TimeoutError` if the server ended the connection because the handler took too long."""
        if (batch.handled or batch.handling) and batch.guard.statements.waited() <= self._deadline / 2:
            took = max(batch.slowest, time.monotonic() - batch.item_began)
            if took >= self._deadline:
                batch.handling = True  # even if our own code met the closed connection
                raise TimeoutError(f"the handler took {took:.0f} s, and has {self._deadline:g} s") from None

    def _handle(self, session: Session, batch: Batch) -> None:
        declared, transaction = self._declared, self._transaction
        running = batch.running()
        held: list[object] = []
        if declared.prefetch is not None and running:
            with keeping(session, held):
                self._contexts.run(declared.prefetch, [item.event for item in running], session)
        if declared.is_batch:
            if running:
                with batch.whole(running):
                    own = self._contexts.new()
                    batch.spans.whole(running, own)
                    own.run(self._invoke, batch.received(running), batch.batch_context(session))
            return
        for item in batch.each():
            own = self._contexts.new()
            batch.spans.enter(item, own)
            current_message.enter(own, declared.name, item.message, item.message_id, item.attempt)
            if declared.session_setup is not None:
                own.run(declared.session_setup, item.event, session)
            reach("in_handler")
            context = batch.context(item, session)
            if item.repeats:
                result = own.run(self._tell, item.event, batch.first_result(item), context)
            else:
                handle = partial(own.run, self._invoke, item.event, context)
                result = handle() if item.steps is None else item.steps.after_in_thread(handle)
            batch.guard.check()
            own.run(batch.handled_one, item, result)
            batch.spans.leave("duplicate" if item.repeats else "processed")
            if batch.flush is Flush.PROBE:
                transaction.probe(session)
            elif batch.flush is Flush.EACH:
                session.flush()
        del held

    async def dead_letter_misuse(self, batch: Batch, error: TransactionEnded) -> Receipt:
        """See `UnitOfWork.dead_letter_misuse`."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._dead_letter_misuse, batch, error)
        return batch.receipt_of_misused()

    def _dead_letter_misuse(self, batch: Batch, error: TransactionEnded) -> None:
        with plain_sessions.for_threads(self._engine)() as session:
            self._transaction.dead_letter_misuse(session, batch, error)
            plain_sessions.commit(session)

    def close(self) -> None:
        """See `UnitOfWork.close`."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _method(declared: Declaration) -> Callable[..., Any]:
    method: Callable[..., Any] = method_of(declared.handler, "handle_batch" if declared.is_batch else "handle")
    return method


async def _committed(session: AsyncSession) -> BaseException | None:
    # A task that raises SystemExit would end the event loop.
    try:
        await session.commit()
    except BaseException as error:  # noqa: BLE001 - judged by what is known of the transaction
        return error
    return None


def _outcome(work: Callable[[], object]) -> BaseException | None:
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - judged by what is known of the transaction
        return error
    return None


def _is_lost(error: BaseException, batch: Batch) -> bool:
    return fault_of(error, in_handler=batch.handling) is Fault.CONNECTION


def _is_littered(error: BaseException, batch: Batch) -> bool:
    """Tell whether a connection may keep an object that an earlier message left there."""
    return batch.reused and fault_of(error, in_handler=batch.handling) is Fault.PRESENT


def _rearm(timeout: asyncio.Timeout, seconds: float) -> None:
    timeout.reschedule(asyncio.get_running_loop().time() + seconds)
