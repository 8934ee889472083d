"""Runs a fresh message by itself: its attempts, and its outcome when they are used up."""

from __future__ import annotations

import time
from datetime import datetime

from consumerkit.engine.lanes.backoff import Interrupted
from consumerkit.engine.lanes.crashes import CrashRecord
from consumerkit.engine.lanes.executor import Executor
from consumerkit.engine.lanes.one_message import NotCounted, OneMessage
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.delivery import Decided, Delivery
from consumerkit.errors import Defer
from consumerkit.message import Message


class Attempts:
    """The attempts of single messages of one lane.

    Args:
        executor: The lane's transactions, brake and backoff.
        one: Runs a message in a transaction.
        crashes: Records runs that may crash the process.
    """

    def __init__(self, executor: Executor, one: OneMessage, crashes: CrashRecord) -> None:
        self._executor = executor
        self._one = one
        self._crashes = crashes

    async def prepare(self, message: Message) -> Decided | None:
        """See `OneMessage.prepare`."""
        return await self._one.prepare(message)

    async def run(self, decided: Decided) -> bool:
        """Run one message until its outcome is durable, or until it is parked.

        Returns:
            Whether the first attempt raised no error.

        Raises:
            Interrupted: The lane must give up. The message is unfinished, unless it was reported as finished.
            HandlerHalted: The handler cannot run until a person acts.
        """
        decided, suspected = await self._crashes.suspect(decided)
        try:
            return await self._run(decided)
        finally:
            if suspected is not None:
                self._crashes.survived(suspected, decided.message)

    async def _run(self, decided: Decided) -> bool:
        first_failed: float | None = None
        since: datetime | None = None
        while (attempt := await self._one.attempt(decided)).error is not None:
            error, delivery = attempt.error, attempt.delivery
            if isinstance(error, Defer | NotCounted):
                await self._one.park(delivery, error, delivery.attempt - 1, error.seconds, since)
                return False
            first_failed = first_failed or time.monotonic()
            since = since or failures.now()
            wait = self._one.next_wait(error, delivery.attempt, time.monotonic() - first_failed)
            if wait is None and not self._one.allows(delivery, error):
                wait = self._executor.gate.wait
            self._one.failed(delivery, error, wait)
            if wait is None:
                await self._one.dead_letter(delivery, error, since)
                return False
            if self._executor.gate.braking or delivery.attempt >= self._executor.declared.retry.in_place:
                await self._one.park(delivery, error, delivery.attempt, wait, since)
                return False
            await self._wait_in_place(delivery, error, wait, since)
            decided = await self._again(delivery)
        return first_failed is None

    async def _wait_in_place(self, delivery: Delivery, error: Exception, wait: float, since: datetime) -> None:
        """Wait for the next attempt; park the message if the lane must give up first.

        The parking lot keeps the count of attempts.
        """
        try:
            await self._executor.backoff.pause(wait)
        except Interrupted:
            self._executor.backoff.resume()
            await self._one.park(delivery, error, delivery.attempt, wait, since)
            raise

    async def _again(self, delivery: Delivery) -> Decided:
        """Prepare the next attempt; decode again, since the handler may have changed the event."""
        again = await self._one.prepare(delivery.message, delivery.attempt + 1)
        assert again is not None
        return again
