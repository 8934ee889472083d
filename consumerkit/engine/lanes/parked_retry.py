"""Retries parked messages: one alone, or several of a key that only waited behind another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from consumerkit.engine.lanes.backoff import Interrupted
from consumerkit.engine.lanes.blame import OWN, blame
from consumerkit.engine.lanes.crashes import CrashRecord
from consumerkit.engine.lanes.executor import Executor
from consumerkit.engine.lanes.one_message import NotCounted, OneMessage
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.delivery import Decided, Delivery, GiveUp, Intent, Park
from consumerkit.errors import Defer
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.parking.parked import Kind, ParkedMessage


class ParkedRetry:
    """Retries of the parked messages of one lane.

    Args:
        executor: The lane's transactions, brake and backoff.
        one: Runs a message in a transaction.
        crashes: Records runs that may crash the process.
    """

    def __init__(self, executor: Executor, one: OneMessage, crashes: CrashRecord) -> None:
        self._executor = executor
        self._one = one
        self._crashes = crashes

    async def retry(self, rows: Sequence[ParkedMessage]) -> bool:
        """Retry parked messages: one, or several of a key that only waited behind another.

        Returns:
            Whether they have left the lot, so that the messages behind them are next.

        Raises:
            Interrupted: The lane must give up; the messages stay parked.
            HandlerHalted: The handler cannot run until a person acts.
        """
        return await (self._retried(rows[0]) if len(rows) == 1 else self._drained(rows))

    async def _drained(self, rows: Sequence[ParkedMessage]) -> bool:
        """Run messages that waited behind another in one transaction; return whether to look for more.

        If one fails, those before it run again together, and it runs alone.
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
        if self._crashes.is_poison(parked):
            letter = failures.poison(decided.delivery, parked.deliveries - 1)
            return await self._retry(Decided(decided.delivery, GiveUp(letter)), parked)
        partition = self._executor.partitions.get((parked.message.topic, parked.message.partition))
        if partition is None or partition.fencing_token is None:
            raise Interrupted
        if not self._crashes.concerns(partition, parked):
            return await self._retry(decided, parked)
        await self._crashes.begin(partition, parked)
        try:
            return await self._retry(decided, parked)
        except Interrupted:
            await self._crashes.end(partition, parked)
            raise

    async def _retry_dead(self, delivery: Delivery, letter: DeadMessage, parked: ParkedMessage) -> bool:
        """Give up a parked message that cannot be handled, if the brake allows it; else it stays."""
        executor = self._executor
        intent: Intent = GiveUp(letter, token=True)
        if not executor.reserve(delivery.message, letter):
            intent = Park(failures.held(delivery, letter, executor.gate.wait_for(letter)))
        try:
            return await self._retry(Decided(delivery, intent), parked)
        finally:
            executor.refund([delivery.message])

    async def _retry(self, decided: Decided, parked: ParkedMessage) -> bool:
        attempt = await self._one.attempt(decided)
        error, delivery = attempt.error, attempt.delivery
        if error is None:
            return attempt.left_lot
        if isinstance(error, Defer | NotCounted):
            await self._one.park(delivery, error, parked.attempts, error.seconds, parked.first_failed_at)
            return False
        since = parked.first_failed_at or failures.now()
        wait = self._one.next_wait(error, delivery.attempt, parked.failing_for)
        poison = self._executor.gate.is_poison(delivery.message)
        if wait is None and not poison and not self._one.allows(delivery, error):
            wait = self._executor.gate.wait
        self._one.failed(delivery, error, wait)
        if wait is None:
            return (await self._one.dead_letter(delivery, error, since)).left_lot
        await self._one.park(delivery, error, delivery.attempt, wait, since)
        return False

    async def _resumed(self, parked: ParkedMessage) -> Decided:
        if parked.kind is Kind.RELEASED:
            return Decided(Delivery(parked.message, retry_of=parked))
        decided = await self._one.prepare(parked.message, parked.attempts + 1)
        if decided is None:
            decided = Decided(Delivery(parked.message), GiveUp(failures.undeclared(parked)))
        delivery = replace(decided.delivery, retry_of=parked, repeats=parked.kind is Kind.REPEAT)
        if parked.digest is not None:
            # The claim dates from its parking; the handler may derive other IDs today.
            delivery = replace(
                delivery,
                digest=parked.digest,
                message_id=parked.message_id,
                fingerprint=parked.fingerprint,
                fingerprint_version=parked.fingerprint_version,
            )
        if parked.error_type == failures.STALE and delivery.aged and decided.letter is None:
            return Decided(delivery, GiveUp(failures.stale(delivery)))
        return Decided(delivery, decided.intent)
