"""Runs one message by itself: its attempts, and what follows when they are over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from itertools import count
from typing import Final

from consumerkit.engine import letters
from consumerkit.engine.blame import OWN, Blame, blame
from consumerkit.engine.fences import Fences
from consumerkit.engine.fresh_context import FreshContexts
from consumerkit.engine.group import Group
from consumerkit.engine.item import Item
from consumerkit.engine.partition import Partition
from consumerkit.engine.patience import Interrupted
from consumerkit.engine.prepare import Preparer
from consumerkit.engine.reduced import reduce
from consumerkit.engine.runner import Runner
from consumerkit.engine.suspects import Suspects
from consumerkit.engine.transaction import StaleFound
from consumerkit.error_tree import deciding
from consumerkit.errors import Defer, Fenced, Reject, Unavailable
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.storage.faults import Fault
from consumerkit.storage.fence import Owners
from consumerkit.storage.parked import Kind, ParkedMessage

CONVICTED_AFTER: Final = 3
_CONNECTIONS: Final = 50
"""Connections of a pool, at most, on which an object that is there already is looked for."""


class NotCounted(Exception):
    """What failed is to wait for `seconds`, and no attempt is counted: it may be trouble that others meet, too."""

    def __init__(self, error: Exception, seconds: float) -> None:
        super().__init__(error, seconds)
        self.error = error
        self.seconds = seconds


class Alone:
    """Attempts, parks and buries single messages of one lane.

    Args:
        runner: Runs a message in a transaction.
        preparer: Decodes messages.
        suspects: Tells a message's own fault from everybody's.
        fences: The database, where runs are written down that may kill the process.
    """

    def __init__(self, runner: Runner, preparer: Preparer, suspects: Suspects, fences: Fences) -> None:
        self._runner = runner
        self._preparer = preparer
        self._suspects = suspects
        self._fences = fences
        self._contexts = FreshContexts()

    async def prepare(self, message: Message, attempt: int = 1) -> Item | None:
        """Return the item for a message, or None for one to skip; waits while the codec is in trouble."""
        while True:
            try:
                return self._preparer.prepare(message, attempt)
            except Unavailable as error:
                await self._runner.patience.wait_out("codec", error)

    async def run(self, item: Item) -> bool:
        """Run one message until its outcome is durable, or until it is parked.

        Returns:
            Whether it has not failed.

        Raises:
            Interrupted: The lane was told to give up; the message is not finished, unless it was reported so.
            HandlerHalted: The handler cannot run before a person acts.
        """
        suspected = await self._suspect(item)
        try:
            return await self._run(item)
        finally:
            # Whatever became of it, the process has survived it; only what a death leaves behind convicts.
            if suspected is not None:
                suspected.suspects.pop(item.message.offset, None)

    async def _run(self, item: Item) -> bool:
        first_failed: float | None = None
        first_failed_at: datetime | None = None
        while (error := await self._attempt(item)) is not None:
            if isinstance(error, Defer | NotCounted):
                await self._park(item, error, item.attempt - 1, error.seconds, first_failed_at)
                return False
            first_failed = first_failed or time.monotonic()
            first_failed_at = first_failed_at or letters.now()
            wait = self._next_wait(error, item.attempt, time.monotonic() - first_failed)
            if wait is None and not self._allowed(item, error):
                wait = self._runner.gate.wait
            self._failed_alone(item, error, wait)
            if wait is None:
                await self._bury(item, error, item.attempt, first_failed_at)
                return False
            if self._runner.gate.braking or item.attempt >= self._runner.declared.retry.in_place:
                await self._park(item, error, item.attempt, wait, first_failed_at)
                return False
            await self._wait_in_place(item, error, wait, first_failed_at)
            item = await self._again(item)
        return first_failed is None

    def _allowed(self, item: Item, error: Exception) -> bool:
        """Ask the brake for a dead letter: a Reject is a verdict, and no sign of an outage."""
        if isinstance(error, Reject):
            return self._runner.gate.reject(item.message)
        item.token = self._runner.gate.spend()
        return item.token

    async def _suspect(self, item: Item) -> Partition | None:
        """Before a message of an isolated partition runs, write down that it does; after three deaths, bury it.

        Returns:
            The partition where it was written down.
        """
        partition = self._runner.partitions.of(item.message)
        if partition is None or not partition.isolated or item.dead is not None or item.parking is not None:
            return None
        offset = item.message.offset
        deaths = partition.suspects.get(offset, 0)
        if deaths >= CONVICTED_AFTER:
            item.dead = letters.killer(item, deaths)
            return None
        partition.suspects[offset] = deaths + 1
        await self._runner.patience.insist(lambda: self._fences.suspect(partition))
        return partition

    async def _wait_in_place(self, item: Item, error: Exception, wait: float, since: datetime) -> None:
        """Wait for the next attempt; where the lane must give up meanwhile, park, so that the attempts are kept."""
        try:
            await self._runner.patience.pause(wait)
        except Interrupted:
            self._runner.patience.resume()
            await self._park(item, error, item.attempt, wait, since)
            raise

    async def _again(self, item: Item) -> Item:
        """Return the item for the next attempt; decoded anew, since the handler may have changed the event."""
        again = await self.prepare(item.message, item.attempt + 1)
        assert again is not None
        return again

    def _failed_alone(self, item: Item, error: Exception, wait: float | None) -> None:
        self._runner.pace.failed()
        self._runner.tell.attempt_failed(item, error, wait, braking=self._runner.gate.braking)

    async def _park(
        self, item: Item, error: Exception, attempts: int, wait: float, first_failed_at: datetime | None
    ) -> None:
        self._runner.gate.failed(item.message)
        error = error.error if isinstance(error, NotCounted) else error
        item.parking = letters.parked(item, error, attempts=attempts, wait=wait, first_failed_at=first_failed_at)
        item.claimed = False
        await self._attempt(item)

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
        items = [await self._resumed(row) for row in rows]
        if any(item.dead is not None for item in items):
            return await self._one_by_one(rows)
        group = self._runner.group(items)
        try:
            await self._runner.transact(group)
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a decision
            fault = blame(group, error).fault
            if fault not in OWN:
                await self._runner.infrastructure(fault, error)
                return True
            self._runner.tell.rolled_back(group, error)
            if group.convicted:
                return True
            return await self._one_by_one(rows) if group.current is None else await self._apart(rows, group.current)
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
        item = await self._resumed(parked)
        if item.dead is not None:
            return await self._retry_dead(item, parked)
        if parked.deliveries > CONVICTED_AFTER:
            # The first of these runs, which no other had made suspicious, was not by itself.
            item.dead = letters.killer(item, parked.deliveries - 1)
            return await self._retry(item, parked)
        partition = self._runner.partitions.get((parked.message.topic, parked.message.partition))
        if partition is None or partition.owner is None:
            raise Interrupted
        if not parked.deliveries and parked.id > partition.haunted:
            # As for a fresh message, a first death is needed before runs are counted.
            return await self._retry(item, parked)
        await self._deliver(partition, parked)
        try:
            return await self._retry(item, parked)
        except Interrupted:
            # The process has survived this run: only what a death leaves behind convicts.
            with suppress(Exception):
                await self._fences.deliver(partition, parked, begins=False)
            raise

    async def _retry_dead(self, item: Item, parked: ParkedMessage) -> bool:
        """Bury a parked message that cannot be handled, if the brake allows it; else it stays."""
        item.token = self._runner.gate.spend_for(item)
        if not item.token:
            item.parking, item.dead = letters.held(item, self._runner.gate.wait_for(item)), None
        try:
            return await self._retry(item, parked)
        finally:
            self._runner.refund([item])

    async def _deliver(self, partition: Partition, parked: ParkedMessage) -> None:
        """Write down that a run begins."""
        owner = partition.owner or b""
        try:
            await self._runner.patience.insist(
                lambda: self._fences.deliver(partition, parked, begins=True), unless=(Fenced,)
            )
        except Fenced as error:
            self._runner.partitions.in_doubt({partition.name: owner}, error)
            raise Interrupted from error

    async def _retry(self, item: Item, parked: ParkedMessage) -> bool:
        error = await self._attempt(item)
        if error is None:
            return not item.stays_parked
        if isinstance(error, Defer | NotCounted):
            await self._park(item, error, parked.attempts, error.seconds, parked.first_failed_at)
            return False
        since = parked.first_failed_at or letters.now()
        wait = self._next_wait(error, item.attempt, parked.failing_for)
        poison = self._runner.gate.is_poison(item.message)
        if wait is None and not poison and not self._allowed(item, error):
            wait = self._runner.gate.wait
        self._failed_alone(item, error, wait)
        if wait is None:
            await self._bury(item, error, item.attempt, since)
            return not item.stays_parked
        await self._park(item, error, item.attempt, wait, since)
        return False

    async def _resumed(self, parked: ParkedMessage) -> Item:
        if parked.kind is Kind.RELEASED:
            released = Item(parked.message)
            released.parked = parked
            return released
        item = await self.prepare(parked.message, parked.attempts + 1)
        if item is None:
            item = Item(parked.message, dead=letters.undeclared(parked))
        if parked.digest is not None:
            # The claim was made when it was parked, whatever the handler reads its IDs from today.
            item.digest, item.message_id = parked.digest, parked.message_id
            item.fingerprint, item.fingerprint_version = parked.fingerprint, parked.fingerprint_version
        if parked.error_type == letters.STALE and item.aged:
            item.dead = item.dead or letters.stale(item)
        item.parked = parked
        item.repeats = parked.kind is Kind.REPEAT
        return item

    async def _attempt(self, item: Item) -> Exception | None:
        """Run one transaction for one item, again and again while the fault is not its own.

        Returns:
            The handler's error, or None when the item is finished.
        """
        owners: Owners | None = None
        for run in count():
            group = self._runner.group([item])
            if owners is not None and group.owners != owners:
                # Taken anew since the decision was made: what was ahead of it may be gone, or more may be.
                raise Interrupted
            owners = group.owners
            try:
                await self._runner.transact(group)
            except Interrupted:
                raise
            except StaleFound:
                return await self._quarantine(item)
            except Exception as error:  # noqa: BLE001 - every error becomes a decision
                if group.convicted:
                    return None
                if not await self._runs_again(item, group, error, run):
                    return await self._counted(item, blame(group, error), error)
            else:
                return None
        raise AssertionError("unreachable")

    async def _runs_again(self, item: Item, group: Group, error: Exception, run: int) -> bool:
        """Wait out what is not an item's fault; return False where it is."""
        fault, _, _, foreign = blame(group, error)
        if fault is Fault.PRESENT and group.reused and run < _CONNECTIONS:
            return True  # the connection was given up, with what a message before has left there
        if fault in OWN:
            if item.dead is None and item.parking is None:
                looks = fault is Fault.SUSPECT or (foreign and not group.sound)
                return looks and not await self._database_answers()
            # The dead letter or the parking itself was refused: nothing may be lost, so wait for better days.
            fault = Fault.CAPACITY
            if reduce(item):
                self._runner.tell.rolled_back(group, error)
                return True
        await self._runner.infrastructure(fault, error)
        return True

    async def _database_answers(self) -> bool:
        """Ask the database something simple; where it does not answer, wait, and return False."""
        try:
            await self._suspects.probe()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no message's fault
            await self._runner.patience.wait_out("database", error)
            return False
        return True

    async def _counted(self, item: Item, found: Blame, error: Exception) -> Exception:
        """Return an item's error, as `NotCounted` where it is not known yet whether it is the item's own."""
        if found.fault is Fault.SUSPECT:
            runner = self._runner
            holds_up = self._holds_up(item.message)
            wait = self._suspects.judge(item.message, found, letters.described(error), holds_up=holds_up)
            if wait is not None:
                runner.tell.suspected(item, error, wait, overload=found.waited)
                return NotCounted(error, wait)
        return deciding(error, Reject, Defer)

    def _holds_up(self, message: Message) -> bool:
        """Tell whether other messages wait until this one has an end."""
        ordering = self._runner.declared.ordering
        if ordering is Ordering.PARTITION:
            return True
        partition = self._runner.partitions.get((message.topic, message.partition))
        if ordering is Ordering.NONE or message.key is None or partition is None:
            return False
        return len(partition.parked.get(message.key, ())) > 1

    async def _quarantine(self, item: Item) -> Exception | None:
        """Bury a message whose event is too old for the ledger, if the brake allows it; else park it."""
        item.token, item.dead = self._runner.gate.spend(), letters.stale(item)
        if not item.token:
            item.parking, item.dead = letters.held(item, self._runner.gate.wait), None
        try:
            return await self._attempt(item)
        finally:
            self._runner.refund([item])

    def _next_wait(self, error: Exception, attempt: int, elapsed: float) -> float | None:
        if isinstance(error, Reject):
            return None
        retry = self._runner.declared.retry
        return self._contexts.run(retry.next_wait, error, attempt=attempt, elapsed=elapsed)

    async def _bury(self, item: Item, error: Exception, attempts: int, first_failed_at: datetime | None) -> None:
        reason = Reason.REJECTED if isinstance(error, Reject) else Reason.EXHAUSTED
        if item.repeats:
            reason = Reason.FAILED_DUPLICATE
        item.dead = letters.from_error(item, reason, error, attempts=attempts, first_failed_at=first_failed_at)
        item.parking = None
        item.claimed = False
        try:
            await self._attempt(item)
        finally:
            self._runner.refund([item])
