"""Calls the handler's `on_dead_letter` for each dead letter, in a transaction that also records the call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from consumerkit import events
from consumerkit.concurrency import in_thread, wait_uncancelled, wait_until_set
from consumerkit.engine.dead_letter_call import DeadLetterCall
from consumerkit.engine.dead_letter_row import letter_of, message_of
from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.commit import being_cancelled, closing, closing_in_thread
from consumerkit.engine.transaction.fresh_context import FreshContexts, in_context
from consumerkit.engine.transaction.session_calls import watching
from consumerkit.errors import PayloadSealed
from consumerkit.events import Announcer
from consumerkit.handlers.dead_lettered import DeadLetteredMessage
from consumerkit.handlers.declaration import Declaration
from consumerkit.message import Message
from consumerkit.storage.database import Database
from consumerkit.storage.dead_letters.hooked import HookRows
from consumerkit.storage.dialects import Limits
from consumerkit.storage.payload import Payload, payload

TRIES: Final = 10
"""Calls after which a letter is given up; with the waits between them about half an hour."""
_FIRST_WAIT: Final = 2.0
_LONGEST_WAIT: Final = 600.0
_LOOK: Final = 2.0
_TROUBLE: Final = 5.0
_GIVE_BACK: Final = 1.0


@dataclass(frozen=True, slots=True)
class HookPlace:
    """Where the calls run.

    Attributes:
        database: Makes the sessions.
        limits: How long a call's transaction may take.
        turns: Waits for the turn on a database with one writer.
    """

    database: Database
    limits: Limits
    turns: Callable[[], AbstractAsyncContextManager[None]]


class DeadLetterHook:
    """Makes the calls of one handler, one after another.

    Args:
        declared: The handler's declarations.
        partition_store: The database, for our own transactions.
        place: Where the calls run.
        announce: Announces events.
        outbox_written: Set when a call has published something.

    Attributes:
        busy_since: When the call under way began, by the monotonic clock; any thread may ask.
    """

    def __init__(
        self,
        declared: Declaration,
        partition_store: PartitionStore,
        place: HookPlace,
        announce: Announcer,
        outbox_written: asyncio.Event,
    ) -> None:
        lot = partition_store.lot
        self.declared = declared
        self._hook: Any = declared.on_dead_letter
        self.rows = HookRows(lot.tables, lot.dialect, lot.consumer)
        self._run = partition_store.run
        self.place = place
        self._announce = announce
        self._outbox_written = outbox_written
        self._contexts = FreshContexts()
        self._stopping = asyncio.Event()
        self._since: float | None = None
        self.busy_since: float | None = None
        self._taken_for = 2 * place.limits.statement
        name = f"consumerkit-{declared.name}-dead-letters"
        self._threads = None if declared.is_async else ThreadPoolExecutor(1, name)

    async def run(self) -> None:
        """Make due calls until `stop`; a call that is cancelled is not counted."""
        try:
            wait = 0.0
            while not await wait_until_set(self._stopping, wait):
                wait = await self._look()
        finally:
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Make no further call."""
        self._stopping.set()

    async def _look(self) -> float:
        """Make the calls that are due; return the seconds until the next look."""
        try:
            due = await self._run(self.rows.next_due)
            if due is None or due > 0:
                self._well()
                return _LOOK
            row = await self._run(partial(self.rows.take, seconds=self._taken_for))
        except Exception as error:  # noqa: BLE001 - announced, and tried again
            self._in_trouble(error)
            return _TROUBLE
        self._well()
        if row is None:
            return _LOOK
        await self._one(row)
        return 0.0

    async def _one(self, row: Any) -> None:
        if row.hook_tries > TRIES:
            await self._failed(row, "the process ended during the last call, or its failure was not recorded")
            return
        try:
            async with self.place.turns():
                self.busy_since = time.monotonic()
                await self._called(row)
        except BaseException as raised:
            if being_cancelled():
                await self._give_back(row)
                raise
            await self._failed(row, _words(raised))
        finally:
            self.busy_since = None

    async def _give_back(self, row: Any) -> None:
        """Let the next worker make a call that a stop has cut off; without an answer it is due when its time is up."""
        with suppress(Exception):
            async with asyncio.timeout(_GIVE_BACK):
                await self._run(partial(self.rows.give_back, row=row))

    async def _called(self, row: Any) -> None:
        letter = letter_of(row, payload(self.rows.tables.sealer, row))
        if self._threads is None:
            published = await self._in_coroutine(row, letter)
        else:
            # A thread cannot be cancelled. The watchdog ends the process of a stuck one.
            done = asyncio.get_running_loop().run_in_executor(self._threads, self._in_thread, row, letter)
            await wait_uncancelled(done, None)
            published = done.result()
        if published:
            self._outbox_written.set()

    async def _in_coroutine(self, row: Any, letter: DeadLetteredMessage) -> bool:
        sessions = self.place.database.async_sessions
        assert sessions is not None
        async with asyncio.timeout(self.place.limits.statement), closing(sessions(), self.declared.name) as session:
            call = DeadLetterCall(self.declared, self.rows, self.place.limits, row)
            try:
                if not await session.run_sync(call.open):
                    return False
                context = call.context(session)
                with watching(session) as calls:
                    await in_context(self._surrounded(call, letter), self._hook, letter, context)
                    calls.check("on_dead_letter")
                published = await session.run_sync(call.close)
                await session.commit()
            finally:
                call.end()
            return published

    def _in_thread(self, row: Any, letter: DeadLetteredMessage) -> bool:
        sessions = self.place.database.sync_sessions
        assert sessions is not None
        with closing_in_thread(sessions(), self.declared.name) as session:
            call = DeadLetterCall(self.declared, self.rows, self.place.limits, row)
            try:
                if not call.open(session):
                    return False
                context = call.context(session)
                in_thread(self._surrounded(call, letter).run, self._hook, letter, context)
                published = call.close(session)
                session.commit()
            except BaseException as raised:
                if isinstance(raised, Exception):
                    raise
                raise RuntimeError(f"on_dead_letter raised {_words(raised)}") from raised
            finally:
                call.end()
            return published

    def _surrounded(self, call: DeadLetterCall, letter: DeadLetteredMessage) -> Context:
        """Return the context of a call, with the letter's message and its trace."""
        call.surroundings = made = self._contexts.new()
        self._announce.surround(made, self.declared.name, letter.message, letter.message_id, call.attempt)
        return made

    async def _failed(self, row: Any, described: str) -> None:
        """Schedule the next try, or give the call up; the letter itself stays as it is."""
        wait = None
        work = partial(self.rows.give_up, row=row, by=self.declared.name, note=described)
        if row.hook_tries < TRIES:
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (row.hook_tries - 1))
            work = partial(self.rows.postpone, row=row, wait=wait)
        try:
            if not await self._run(work):
                # The COMMIT was carried out and only its answer is lost, or another worker makes the call.
                self._outbox_written.set()
                return
        except Exception as trouble:  # noqa: BLE001 - announced; the letter is due again when its time has passed
            self._in_trouble(trouble)
            wait = self._taken_for
        self._announce(
            events.DeadLetterHookFailed(
                letter=row.id,
                message_id=row.message_id or "",
                attempt=row.hook_tries,
                error=described,
                wait=wait,
            ),
            self._about(row),
        )

    def _in_trouble(self, error: Exception) -> None:
        self._since = self._since or time.monotonic()
        self._announce(events.Trouble(where="database", error=failures.described(error), wait=_TROUBLE))

    def _well(self) -> None:
        if self._since is not None:
            seconds, self._since = time.monotonic() - self._since, None
            self._announce(events.TroubleOver(where="database", seconds=seconds))

    def _about(self, row: Any) -> Message:
        """Return the letter's message, for observers; without its headers if they cannot be unsealed."""
        try:
            return message_of(row, payload(self.rows.tables.sealer, row))
        except PayloadSealed:
            return message_of(row, Payload(None, ()))


def _words(raised: BaseException) -> str:
    return failures.described(raised) if isinstance(raised, Exception) else type(raised).__name__
