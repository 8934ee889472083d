"""Undoes the steps of dead messages; reads the due undos from the database."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection

from consumerkit import events
from consumerkit.concurrency import wait_until_set
from consumerkit.dead_letters.formats import consumerkit as dead_letter_format
from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.fresh_context import FreshContexts
from consumerkit.engine.undo_calls import UndoTrouble, contained, contained_coroutine
from consumerkit.errors import Defer, PayloadSealed, Reject
from consumerkit.events import Announcer
from consumerkit.failpoints import reach
from consumerkit.handlers.declaration import Declaration
from consumerkit.handlers.declared_steps import DeclaredStep
from consumerkit.handlers.no_steps import Undoing
from consumerkit.handlers.steps import IdempotencyKey, outcome
from consumerkit.message import TopicPartition
from consumerkit.outcome import Reason
from consumerkit.steps import HandlerSteps
from consumerkit.steps.arguments import read_arguments
from consumerkit.storage import outbox
from consumerkit.storage.dead_letters import undo_letters
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.progress import OWNER_BYTES
from consumerkit.storage.undoing import Undo, UndoRows

T = TypeVar("T")
HELD: Final = 30.0
"""Seconds for which a message's steps are held; after a crash its undo goes on when they pass."""
LONGEST_SLEEP: Final = 5.0
SHORTEST_SLEEP: Final = 0.25


class CannotUndo(Exception):
    """The handler has no undo for the step, or cannot read the undo's arguments or result."""


class Written(NamedTuple):
    """An undo that is given up: whether we recorded it, and its dead letter or None."""

    ours: bool
    letter: DeadMessage | None


class Undoer:
    """Undoes the steps of one handler's dead messages.

    Args:
        declared: The handler's declarations.
        partition_store: The database.
        shared: The limits and threads that the handler's steps share.
        announce: Announces events.
        outbox_written: Set when a dead letter is in the outbox.
    """

    def __init__(
        self,
        declared: Declaration,
        partition_store: PartitionStore,
        shared: HandlerSteps,
        announce: Announcer,
        outbox_written: asyncio.Event,
    ) -> None:
        self._declared = declared
        lot = partition_store.lot
        self._rows = UndoRows(lot.tables, lot.dialect, lot.consumer)
        self._run = partition_store.run
        self._shared = shared
        self._announce = announce
        self._outbox_written = outbox_written
        self._owner = secrets.token_bytes(OWNER_BYTES)
        self._contexts = FreshContexts()
        self._under_way: set[asyncio.Task[None]] = set()
        self._trouble = UndoTrouble(announce)

    async def run(self) -> None:
        """Run due undos until cancelled."""
        try:
            while True:
                self._shared.undo_due.clear()
                sleep = await self._keep_trying(self._look)
                await wait_until_set(self._shared.undo_due, sleep)
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _look(self) -> float:
        """Begin due undos; return the seconds until the next look."""
        room = self._declared.step_concurrency - len(self._under_way)
        if room <= 0:
            return LONGEST_SLEEP

        def work(connection: Connection) -> tuple[dict[bytes, list[Undo]], float | None]:
            claimed = self._rows.claim(connection, self._owner, HELD, room)
            return claimed, self._rows.next_due(connection)

        claimed, next_due = await self._run(work)
        if next_due is None and not claimed and not self._under_way:
            self._trouble.over()
        for one in claimed.values():
            task = asyncio.create_task(self._message(one))
            self._under_way.add(task)
            task.add_done_callback(self._over)
        return LONGEST_SLEEP if next_due is None else min(LONGEST_SLEEP, max(SHORTEST_SLEEP, next_due))

    def _over(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._shared.undo_due.set()
        self._trouble.ended(task, HELD)

    async def _message(self, steps: Sequence[Undo]) -> None:
        """Undo the steps of one message, the last one first."""
        for one in steps:
            # Each step gets the whole time of a hold. A step that is no longer ours is not called.
            hold = partial(self._rows.hold, digest=one.digest, owner=self._owner, seconds=HELD)
            if not await self._keep_trying(self._run, hold):
                return
            try:
                called = await self._held(one, self._undo(one))
            except Exception as error:  # noqa: BLE001 - every error becomes a decision
                if await self._failed(one, error):
                    return
                continue
            written = partial(self._undone, one)
            if not await self._keep_trying(self._run, written):
                return
            reach("undo_done")
            told = events.StepUndone(message_id=one.message_id, step=one.step, letter=one.letter, called=called)
            self._announce(told, one.message)

    def _undone(self, one: Undo, connection: Connection) -> bool:
        written = self._rows.undone(connection, one, self._owner)
        if written and one.undo_letter is not None:
            undo_letters.resolve(connection, self._rows.tables, one.undo_letter, self._declared.name)
        return written

    async def _undo(self, one: Undo) -> bool:
        """Undo a step; return whether its undo was called."""
        declared = self._declared.steps.get(one.step)
        if declared is None or declared.undoes is None:
            raise CannotUndo(f"the handler no longer has a step {one.step!r} with an undo")
        try:
            kept = self._rows.arguments(one)
            if kept is None:
                raise CannotUndo(f"the arguments of step {one.step!r} were not kept: it had no undo then")
            args, kwargs = read_arguments(declared, kept, Undoing(is_async=declared.is_async), one.message_id)
            done = None if one.result is None else declared.result.validate_json(one.result)
        except (ValidationError, PayloadSealed) as error:
            told = error if isinstance(error, PayloadSealed) else "it is not what the step takes or returns today"
            raise CannotUndo(f"what is kept of step {one.step!r} cannot be read: {told}") from None
        key = IdempotencyKey.of(self._declared.name, one.digest, one.step, one.generation)
        reach("undo_started")
        async with self._shared.slots:
            if not one.known and declared.asks is not None:
                answer = outcome(
                    await self._call(one, declared, partial(declared.asks, key, *args, **kwargs)), one.step
                )
                if answer is None:
                    return False
                done = answer.result
            await self._call(one, declared, partial(declared.undoes, key, done, *args, **kwargs))
        reach("undo_called")
        return True

    async def _call(self, one: Undo, declared: DeclaredStep, method: Callable[[], Any]) -> Any:
        context = self._contexts.new()
        if one.message is not None:
            self._announce.surround(context, self._declared.name, one.message, one.message_id, one.attempts + 1)
        if self._shared.threads is not None:
            return await asyncio.get_running_loop().run_in_executor(
                self._shared.threads, partial(context.run, contained, method)
            )
        async with asyncio.timeout(declared.deadline):
            return await asyncio.create_task(contained_coroutine(method), context=context)

    async def _held(self, one: Undo, work: Awaitable[T]) -> T:
        """Do work and hold the message until it ends, however long it takes."""
        task = asyncio.ensure_future(work)
        hold = partial(self._rows.hold, digest=one.digest, owner=self._owner, seconds=HELD)
        try:
            while not (await asyncio.wait({task}, timeout=HELD / 3))[0]:
                with suppress(Exception):
                    await self._run(hold)
        except BaseException:
            task.cancel()
            raise
        return task.result()

    async def _failed(self, one: Undo, error: Exception) -> bool:
        """Record that an undo failed; return whether to stop with the message's other steps."""
        attempt, wait = one.attempts + 1, self._wait(one, error)
        if isinstance(error, Defer):
            attempt -= 1
        if wait is not None:
            counted = not isinstance(error, Defer)
            later = partial(self._rows.postpone, one=one, owner=self._owner, wait=wait, failed=counted)
            await self._keep_trying(self._run, later)
            self._tell(one, error, attempt, wait, None)
            return True
        gone = await self._keep_trying(self._run, partial(self._give_up, one, error))
        if gone.ours:
            self._tell(one, error, attempt, None, gone.letter)
        return not gone.ours

    def _wait(self, one: Undo, error: Exception) -> float | None:
        if isinstance(error, Defer):
            return error.seconds
        declared = self._declared.steps.get(one.step)
        if isinstance(error, Reject | CannotUndo) or declared is None:
            return None
        retry = declared.undo_retry
        return self._contexts.run(retry.next_wait, error, attempt=one.attempts + 1, elapsed=one.failing_for)

    def _give_up(self, one: Undo, error: Exception, connection: Connection) -> Written:
        """Write an undo's dead letter in one transaction with the step's new state."""
        rows, declared = self._rows, self._declared
        dead = undo_letters.of(connection, rows.tables, one, failures.recorded_text(error))
        if dead is not None:
            dead = replace(dead, error_type=failures.error_type(error), stack=failures.stack_of(error))
            dead = replace(dead, hooked=declared.on_dead_letter is not None)
            dead = undo_letters.enter(connection, rows.tables, rows.consumer, dead)
        if not rows.not_undone(connection, one, self._owner, None if dead is None else dead.id):
            raise _Gone
        if dead is not None and declared.dead_letter is not None:
            copy = dead_letter_format.written(dead, declared.dead_letter.topic, declared.name, datetime.now(UTC))
            outbox.append(connection, rows.tables, [copy])
        return Written(True, dead)

    def _tell(self, one: Undo, error: Exception, attempt: int, wait: float | None, dead: DeadMessage | None) -> None:
        described, in_full = failures.described(error), failures.in_full(error)
        letter = None if dead is None else dead.id
        self._announce(
            events.StepUndoFailed(
                message_id=one.message_id,
                step=one.step,
                attempt=attempt,
                error=described,
                wait=wait,
                letter=letter,
                in_full=in_full,
            ),
            one.message,
        )
        if dead is None:
            return
        self._outbox_written.set()
        message = dead.message
        self._announce(
            events.MessageDeadLettered(
                partition=TopicPartition(message.topic, message.partition),
                offset=message.offset,
                message_id=one.message_id,
                reason=Reason.UNDO_FAILED,
                error=failures.told(dead),
                letter=letter,
                attempts=dead.attempts,
                summary=described,
            ),
            message,
        )

    async def _keep_trying(self, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Do work on the database; repeat it while the database is in trouble."""
        failed, since = 0, time.monotonic()
        while True:
            try:
                found = await work(*args)
            except _Gone:
                return Written(False, None)
            except Exception as error:  # noqa: BLE001 - announced, and tried again
                failed += 1
                wait = min(LONGEST_SLEEP, 0.25 * 2**failed)
                self._announce(events.Trouble(where="database", error=failures.described(error), wait=wait))
                await asyncio.sleep(wait)
            else:
                if failed:
                    self._announce(events.TroubleOver(where="database", seconds=time.monotonic() - since))
                return found


class _Gone(Exception):
    """Another process has taken the step over: nothing is written."""
