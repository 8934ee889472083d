"""Runs one message by itself: its attempts, and what follows when they are over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from itertools import count
from typing import Final, NamedTuple

from consumerkit.engine.lanes.backoff import Interrupted
from consumerkit.engine.lanes.blame import OWN, Blame, blame
from consumerkit.engine.lanes.executor import Executor
from consumerkit.engine.lanes.suspects import Suspects
from consumerkit.engine.partitions.partition import Partition
from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.batch import Batch
from consumerkit.engine.transaction.delivery import DeadLetter, Decided, Delivery, Handle, Intent, Park
from consumerkit.engine.transaction.fresh_context import FreshContexts
from consumerkit.engine.transaction.prepare import Preparer
from consumerkit.engine.transaction.reduced import reduced
from consumerkit.engine.transaction.transaction import StaleFound
from consumerkit.error_tree import deciding
from consumerkit.errors import Defer, Fenced, Reject, Unavailable
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.faults import Fault
from consumerkit.storage.fence import Owners
from consumerkit.storage.parking.parked import Kind, ParkedMessage

POISON_AFTER: Final = 3
_CONNECTIONS: Final = 50
"""Connections of a pool, at most, on which an object that is there already is looked for."""


class NotCounted(Exception):
    """What failed is to wait for `seconds`, and no attempt is counted: it may be trouble that others meet, too."""

    def __init__(self, error: Exception, seconds: float) -> None:
        super().__init__(error, seconds)
        self.error = error
        self.seconds = seconds


class Attempt(NamedTuple):
    """What came of a transaction for one message.

    Attributes:
        delivery: The message, and whether it was found to repeat another one.
        error: Its failure; None where the transaction is durable.
        left_lot: Whether its row has left the parking lot.
    """

    delivery: Delivery
    error: Exception | None = None
    left_lot: bool = False


class Attempts:
    """Attempts, parks and dead-letters single messages of one lane.

    Args:
        executor: Runs a message in a transaction.
        preparer: Decodes messages.
        suspects: Tells a message's own fault from everybody's.
        partition_store: The database, where runs are written down that may kill the process.
    """

    def __init__(
        self, executor: Executor, preparer: Preparer, suspects: Suspects, partition_store: PartitionStore
    ) -> None:
        self._executor = executor
        self._preparer = preparer
        self._suspects = suspects
        self._partition_store = partition_store
        self._contexts = FreshContexts()

    async def prepare(self, message: Message, attempt: int = 1) -> Decided | None:
        """Return the delivery of a message, or None for one to skip; waits while the codec is in trouble."""
        while True:
            try:
                return self._preparer.prepare(message, attempt)
            except Unavailable as error:
                await self._executor.backoff.wait("codec", error)

    async def run(self, decided: Decided) -> bool:
        """Run one message until its outcome is durable, or until it is parked.

        Returns:
            Whether it has not failed.

        Raises:
            Interrupted: The lane was told to give up; the message is not finished, unless it was reported so.
            HandlerHalted: The handler cannot run before a person acts.
        """
        decided, suspected = await self._suspect(decided)
        try:
            return await self._run(decided)
        finally:
            # The process has survived this run. Only records that a death leaves behind count against a message.
            if suspected is not None:
                suspected.suspect_offsets.pop(decided.message.offset, None)

    async def _run(self, decided: Decided) -> bool:
        first_failed: float | None = None
        since: datetime | None = None
        while (attempt := await self._attempt(decided)).error is not None:
            error, delivery = attempt.error, attempt.delivery
            if isinstance(error, Defer | NotCounted):
                await self._park(delivery, error, delivery.attempt - 1, error.seconds, since)
                return False
            first_failed = first_failed or time.monotonic()
            since = since or failures.now()
            wait = self._next_wait(error, delivery.attempt, time.monotonic() - first_failed)
            if wait is None and not self._allowed(delivery, error):
                wait = self._executor.gate.wait
            self._failed_alone(delivery, error, wait)
            if wait is None:
                await self._dead_letter(delivery, error, since)
                return False
            if self._executor.gate.braking or delivery.attempt >= self._executor.declared.retry.in_place:
                await self._park(delivery, error, delivery.attempt, wait, since)
                return False
            await self._wait_in_place(delivery, error, wait, since)
            decided = await self._again(delivery)
        return first_failed is None

    def _allowed(self, delivery: Delivery, error: Exception) -> bool:
        """Ask the brake for a dead letter: a Reject is a verdict, and no sign of an outage."""
        if isinstance(error, Reject):
            return self._executor.gate.reject(delivery.message)
        return self._executor.reserve(delivery.message)

    async def _suspect(self, decided: Decided) -> tuple[Decided, Partition | None]:
        """Before a message of an isolated partition runs, record that it does; after three crashes, give it up.

        Returns:
            What is decided now, and the partition where it was written down.
        """
        message = decided.message
        partition = self._executor.partitions.of(message)
        if partition is None or not partition.isolated or not isinstance(decided.intent, Handle):
            return decided, None
        crashes = partition.suspect_offsets.get(message.offset, 0)
        if crashes >= POISON_AFTER:
            return Decided(decided.delivery, DeadLetter(failures.poison(decided.delivery, crashes))), None
        partition.suspect_offsets[message.offset] = crashes + 1
        await self._executor.backoff.keep_trying(lambda: self._partition_store.suspect(partition))
        return decided, partition

    async def _wait_in_place(self, delivery: Delivery, error: Exception, wait: float, since: datetime) -> None:
        """Wait for the next attempt; where the lane must give up before, park, so that the attempts are kept."""
        try:
            await self._executor.backoff.pause(wait)
        except Interrupted:
            self._executor.backoff.resume()
            await self._park(delivery, error, delivery.attempt, wait, since)
            raise

    async def _again(self, delivery: Delivery) -> Decided:
        """Return the next attempt; decoded again, since the handler may have changed the event."""
        again = await self.prepare(delivery.message, delivery.attempt + 1)
        assert again is not None
        return again

    def _failed_alone(self, delivery: Delivery, error: Exception, wait: float | None) -> None:
        self._executor.batch_sizes.failed()
        self._executor.tell.attempt_failed(delivery, error, wait, braking=self._executor.gate.braking)

    async def _park(
        self, delivery: Delivery, error: Exception, attempts: int, wait: float, first_failed_at: datetime | None
    ) -> None:
        self._executor.gate.failed(delivery.message)
        error = error.error if isinstance(error, NotCounted) else error
        row = failures.parked(delivery, error, attempts=attempts, wait=wait, first_failed_at=first_failed_at)
        await self._attempt(Decided(delivery, Park(row)))

    async def retry(self, rows: Sequence[ParkedMessage]) -> bool:
        """Try parked messages again: one, or some of a key that only waited behind another.

        Returns:
            Whether they have left the lot, so that what waits behind them is next.

        Raises:
            Interrupted: As for `run`; what is parked stays so.
            HandlerHalted: As for `run`.
        """
        return await (self._retried(rows[0]) if len(rows) == 1 else self._drained(rows))

    async def _drained(self, rows: Sequence[ParkedMessage]) -> bool:
        """Run messages that waited behind another in one transaction; return whether to look for what is next.

        Where one fails, those before it are run again together, and it by itself.
        """
        resumed = [await self._resumed(row) for row in rows]
        if any(one.letter is not None for one in resumed):
            return await self._one_by_one(rows)
        batch = self._executor.batch(resumed)
        try:
            await self._executor.transact(batch)
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a decision
            fault = blame(batch, error).fault
            if fault not in OWN:
                await self._executor.infrastructure(fault, error)
                return True
            self._executor.tell.rolled_back(batch, error)
            if batch.misused:
                return True
            return await self._one_by_one(rows) if batch.current is None else await self._apart(rows, batch.current)
        return True

    async def _apart(self, rows: Sequence[ParkedMessage], at: int) -> bool:
        if at > 1:
            return await self._drained(rows[:at])
        return await self._one_by_one(rows[: at + 1])

    async def _one_by_one(self, rows: Sequence[ParkedMessage]) -> bool:
        for row in rows:
            if not await self._retried(row):
                return False
        return True

    async def _retried(self, parked: ParkedMessage) -> bool:
        """Run one attempt of a parked message; return whether it has left the lot."""
        decided = await self._resumed(parked)
        if decided.letter is not None:
            return await self._retry_dead(decided.delivery, decided.letter, parked)
        if parked.deliveries > POISON_AFTER:
            # The first of these runs, which no other had made suspicious, was not by itself.
            letter = failures.poison(decided.delivery, parked.deliveries - 1)
            return await self._retry(Decided(decided.delivery, DeadLetter(letter)), parked)
        partition = self._executor.partitions.get((parked.message.topic, parked.message.partition))
        if partition is None or partition.fencing_token is None:
            raise Interrupted
        if not parked.deliveries and parked.id > partition.crash_watermark:
            # As for a fresh message, a first death is needed before runs are counted.
            return await self._retry(decided, parked)
        await self._deliver(partition, parked)
        try:
            return await self._retry(decided, parked)
        except Interrupted:
            # The process has survived this run. Only records that a death leaves behind count against a message.
            with suppress(Exception):
                await self._partition_store.deliver(partition, parked, begins=False)
            raise

    async def _retry_dead(self, delivery: Delivery, letter: DeadMessage, parked: ParkedMessage) -> bool:
        """Give up a parked message that cannot be handled, if the brake allows it; else it stays."""
        executor = self._executor
        intent: Intent = DeadLetter(letter, token=True)
        if not executor.reserve(delivery.message, letter):
            intent = Park(failures.held(delivery, letter, executor.gate.wait_for(letter)))
        try:
            return await self._retry(Decided(delivery, intent), parked)
        finally:
            executor.refund([delivery.message])

    async def _deliver(self, partition: Partition, parked: ParkedMessage) -> None:
        """Write down that a run begins."""
        owner = partition.fencing_token or b""
        try:
            await self._executor.backoff.keep_trying(
                lambda: self._partition_store.deliver(partition, parked, begins=True), unless=(Fenced,)
            )
        except Fenced as error:
            self._executor.partitions.in_doubt({partition.name: owner}, error)
            raise Interrupted from error

    async def _retry(self, decided: Decided, parked: ParkedMessage) -> bool:
        attempt = await self._attempt(decided)
        error, delivery = attempt.error, attempt.delivery
        if error is None:
            return attempt.left_lot
        if isinstance(error, Defer | NotCounted):
            await self._park(delivery, error, parked.attempts, error.seconds, parked.first_failed_at)
            return False
        since = parked.first_failed_at or failures.now()
        wait = self._next_wait(error, delivery.attempt, parked.failing_for)
        poison = self._executor.gate.is_poison(delivery.message)
        if wait is None and not poison and not self._allowed(delivery, error):
            wait = self._executor.gate.wait
        self._failed_alone(delivery, error, wait)
        if wait is None:
            return (await self._dead_letter(delivery, error, since)).left_lot
        await self._park(delivery, error, delivery.attempt, wait, since)
        return False

    async def _resumed(self, parked: ParkedMessage) -> Decided:
        if parked.kind is Kind.RELEASED:
            return Decided(Delivery(parked.message, retry_of=parked))
        decided = await self.prepare(parked.message, parked.attempts + 1)
        if decided is None:
            decided = Decided(Delivery(parked.message), DeadLetter(failures.undeclared(parked)))
        delivery = replace(decided.delivery, retry_of=parked, repeats=parked.kind is Kind.REPEAT)
        if parked.digest is not None:
            # The claim was made when it was parked, whatever the handler reads its IDs from today.
            delivery = replace(
                delivery,
                digest=parked.digest,
                message_id=parked.message_id,
                fingerprint=parked.fingerprint,
                fingerprint_version=parked.fingerprint_version,
            )
        if parked.error_type == failures.STALE and delivery.aged and decided.letter is None:
            return Decided(delivery, DeadLetter(failures.stale(delivery)))
        return Decided(delivery, decided.intent)

    async def _attempt(self, decided: Decided) -> Attempt:
        """Run one transaction for one message, again and again while the fault is not its own."""
        owners: Owners | None = None
        for run in count():
            batch = self._executor.batch([decided])
            if owners is not None and batch.owners != owners:
                # Taken over again since the decision: what was ahead of it may be gone, or there may be more.
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

    async def _runs_again(self, decided: Decided, batch: Batch, error: Exception, run: int) -> Decided | None:
        """Wait out what is not a message's fault; return what to run again, or None where it is."""
        fault, _, _, foreign = blame(batch, error)
        if fault is Fault.PRESENT and batch.reused and run < _CONNECTIONS:
            return decided  # the connection was given up, with what a message before has left there
        if fault in OWN:
            item = batch.items[0]
            if item.dead is None and item.parking is None:
                looks = fault is Fault.SUSPECT or (foreign and not batch.sound)
                return decided if looks and not await self._database_answers() else None
            # The dead letter or the parking itself was refused: nothing may be lost, so wait for better days.
            fault = Fault.CAPACITY
            if (smaller := reduced(decided)) is not None:
                self._executor.tell.rolled_back(batch, error)
                return smaller
        await self._executor.infrastructure(fault, error)
        return decided

    async def _database_answers(self) -> bool:
        """Ask the database something simple; where it does not answer, wait, and return False."""
        try:
            await self._suspects.probe()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no message's fault
            await self._executor.backoff.wait("database", error)
            return False
        return True

    async def _counted(self, delivery: Delivery, found: Blame, error: Exception) -> Exception:
        """Return an item's error, as `NotCounted` where it is not known yet whether it is the item's own."""
        if found.fault is Fault.SUSPECT:
            executor = self._executor
            holds_up = self._holds_up(delivery.message)
            wait = self._suspects.judge(delivery.message, found, failures.described(error), holds_up=holds_up)
            if wait is not None:
                executor.tell.suspected(delivery, error, wait, overload=found.waited)
                return NotCounted(error, wait)
        return deciding(error, Reject, Defer)

    def _holds_up(self, message: Message) -> bool:
        """Tell whether other messages wait until this one has an end."""
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
        intent: Intent = DeadLetter(letter, token=True)
        if not executor.reserve(delivery.message):
            intent = Park(failures.held(delivery, letter, executor.gate.wait))
        try:
            return await self._attempt(Decided(delivery, intent))
        finally:
            executor.refund([delivery.message])

    def _next_wait(self, error: Exception, attempt: int, elapsed: float) -> float | None:
        if isinstance(error, Reject):
            return None
        retry = self._executor.declared.retry
        return self._contexts.run(retry.next_wait, error, attempt=attempt, elapsed=elapsed)

    async def _dead_letter(self, delivery: Delivery, error: Exception, first_failed_at: datetime | None) -> Attempt:
        reason = Reason.REJECTED if isinstance(error, Reject) else Reason.EXHAUSTED
        if delivery.repeats:
            reason = Reason.FAILED_DUPLICATE
        letter = failures.from_error(
            delivery, reason, error, attempts=delivery.attempt, first_failed_at=first_failed_at
        )
        token = self._executor.is_reserved(delivery.message)
        try:
            return await self._attempt(Decided(delivery, DeadLetter(letter, token)))
        finally:
            self._executor.refund([delivery.message])
