"""Runs one message in its own transaction, and parks it or gives it up if it fails."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from itertools import count
from typing import Final, NamedTuple

from consumerkit.engine.lanes.backoff import Interrupted
from consumerkit.engine.lanes.blame import OWN, Blame, blame
from consumerkit.engine.lanes.executor import Executor
from consumerkit.engine.lanes.suspects import Suspects
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.batch import Batch
from consumerkit.engine.transaction.claiming import StaleFound
from consumerkit.engine.transaction.delivery import Decided, Delivery, GiveUp, Intent, Park
from consumerkit.engine.transaction.fresh_context import FreshContexts
from consumerkit.engine.transaction.prepare import Preparer
from consumerkit.engine.transaction.reduced import reduced
from consumerkit.error_tree import deciding
from consumerkit.errors import Defer, Reject, Unavailable
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.storage.faults import Fault
from consumerkit.storage.fence import Owners

_CONNECTIONS: Final = 50
"""The most connections of a pool to try while each already has an object that the message creates."""


class NotCounted(Exception):
    """The message waits for `seconds`, and no attempt counts: other messages may meet the same trouble."""

    def __init__(self, error: Exception, seconds: float) -> None:
        super().__init__(error, seconds)
        self.error = error
        self.seconds = seconds


class Attempt(NamedTuple):
    """The result of a transaction for one message.

    Attributes:
        delivery: The message, and whether it was found to repeat another one.
        error: Its failure; None if the transaction is durable.
        left_lot: Whether its row has left the parking lot.
    """

    delivery: Delivery
    error: Exception | None = None
    left_lot: bool = False


class OneMessage:
    """Runs one message of a lane in a transaction, or parks it or gives it up in one.

    Args:
        executor: Runs a message in a transaction.
        preparer: Decodes messages.
        suspects: Tells a message's own fault from trouble that others share.
    """

    def __init__(self, executor: Executor, preparer: Preparer, suspects: Suspects) -> None:
        self._executor = executor
        self._preparer = preparer
        self._suspects = suspects
        self._contexts = FreshContexts()

    async def prepare(self, message: Message, attempt: int = 1) -> Decided | None:
        """Return the delivery of a message, or None for one to skip; waits while the codec is in trouble."""
        while True:
            try:
                return self._preparer.prepare(message, attempt)
            except Unavailable as error:
                await self._executor.backoff.wait("codec", error)

    async def attempt(self, decided: Decided) -> Attempt:
        """Run one transaction for one message; repeat it while the fault is not the message's own."""
        owners: Owners | None = None
        for run in count():
            batch = self._executor.batch([decided])
            if owners is not None and batch.owners != owners:
                # Taken over again since the decision: the messages ahead of it may be others by now.
                raise Interrupted
            owners = batch.owners
            try:
                receipt = await self._executor.transact(batch)
            except Interrupted:
                raise
            except StaleFound:
                return await self._quarantine(decided.delivery)
            except Exception as error:  # noqa: BLE001 - every error becomes a decision
                if batch.misused:
                    return Attempt(decided.delivery, left_lot=not batch.misused[0].stays_parked)
                again = await self._runs_again(decided, batch, error, run)
                if again is None:
                    delivery = replace(decided.delivery, repeats=batch.items[0].repeats)
                    return Attempt(delivery, await self._counted(delivery, blame(batch, error), error))
                decided = again
            else:
                return Attempt(decided.delivery, left_lot=bool(receipt.unparked))
        raise AssertionError("unreachable")

    async def park(
        self, delivery: Delivery, error: Exception, attempts: int, wait: float, first_failed_at: datetime | None
    ) -> None:
        """Park a message until its next attempt; `wait` is in seconds."""
        self._executor.gate.failed(delivery.message)
        error = error.error if isinstance(error, NotCounted) else error
        row = failures.parked(delivery, error, attempts=attempts, wait=wait, first_failed_at=first_failed_at)
        await self.attempt(Decided(delivery, Park(row)))

    async def dead_letter(self, delivery: Delivery, error: Exception, first_failed_at: datetime | None) -> Attempt:
        """Give a message up: its attempts are over."""
        reason = Reason.REJECTED if isinstance(error, Reject) else Reason.EXHAUSTED
        if delivery.repeats:
            reason = Reason.FAILED_DUPLICATE
        letter = failures.from_error(
            delivery, reason, error, attempts=delivery.attempt, first_failed_at=first_failed_at
        )
        token = self._executor.is_reserved(delivery.message)
        try:
            return await self.attempt(Decided(delivery, GiveUp(letter, token)))
        finally:
            self._executor.refund([delivery.message])

    def allows(self, delivery: Delivery, error: Exception) -> bool:
        """Ask the brake for a dead letter; a Reject is the handler's verdict, not a sign of an outage."""
        if isinstance(error, Reject):
            return self._executor.gate.reject(delivery.message)
        return self._executor.reserve(delivery.message)

    def next_wait(self, error: Exception, attempt: int, elapsed: float) -> float | None:
        """Return the seconds until the next attempt; None if there is none."""
        if isinstance(error, Reject):
            return None
        retry = self._executor.declared.retry
        return self._contexts.run(retry.next_wait, error, attempt=attempt, elapsed=elapsed)

    def failed(self, delivery: Delivery, error: Exception, wait: float | None) -> None:
        """Announce a failed attempt, and adapt the size of batches."""
        self._executor.batch_sizes.failed()
        self._executor.tell.attempt_failed(delivery, error, wait, braking=self._executor.gate.braking)

    async def _runs_again(self, decided: Decided, batch: Batch, error: Exception, run: int) -> Decided | None:
        """Wait out a fault that is not the message's; return what to run again, or None if it is."""
        fault, _, _, foreign = blame(batch, error)
        if fault is Fault.PRESENT and batch.reused and run < _CONNECTIONS:
            return decided  # the connection was given up, with the object that an earlier message left there
        if fault in OWN:
            item = batch.items[0]
            if item.dead is None and item.parking is None:
                looks = fault is Fault.SUSPECT or (foreign and not batch.sound)
                return decided if looks and not await self._database_answers() else None
            # The dead letter or the parking itself was refused. Nothing may be lost, so it is tried again later.
            fault = Fault.CAPACITY
            if (smaller := reduced(decided)) is not None:
                self._executor.tell.rolled_back(batch, error)
                return smaller
        await self._executor.infrastructure(fault, error)
        return decided

    async def _database_answers(self) -> bool:
        """Probe the database; if it does not answer, wait and return False."""
        try:
            await self._suspects.probe()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no message's fault
            await self._executor.backoff.wait("database", error)
            return False
        return True

    async def _counted(self, delivery: Delivery, found: Blame, error: Exception) -> Exception:
        """Return an item's error; as `NotCounted` while it may not be the item's own."""
        if found.fault is Fault.SUSPECT:
            executor = self._executor
            holds_up = self._holds_up(delivery.message)
            wait = self._suspects.judge(delivery.message, found, failures.described(error), holds_up=holds_up)
            if wait is not None:
                executor.tell.suspected(delivery, error, wait, overload=found.waited)
                return NotCounted(error, wait)
        return deciding(error, Reject, Defer)

    def _holds_up(self, message: Message) -> bool:
        """Tell whether other messages wait for this one's outcome."""
        ordering = self._executor.declared.ordering
        if ordering is Ordering.PARTITION:
            return True
        partition = self._executor.partitions.get((message.topic, message.partition))
        if ordering is Ordering.NONE or message.key is None or partition is None:
            return False
        return len(partition.parked.get(message.key, ())) > 1

    async def _quarantine(self, delivery: Delivery) -> Attempt:
        """Give up a message whose event is too old for the ledger, if the brake allows it; else park it."""
        executor, letter = self._executor, failures.stale(delivery)
        intent: Intent = GiveUp(letter, token=True)
        if not executor.reserve(delivery.message):
            intent = Park(failures.held(delivery, letter, executor.gate.wait))
        try:
            return await self.attempt(Decided(delivery, intent))
        finally:
            executor.refund([delivery.message])
