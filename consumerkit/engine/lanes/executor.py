"""Runs one batch in one transaction and enters its durable results."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from consumerkit.engine.lanes.announcements import Announcements
from consumerkit.engine.lanes.backoff import Backoff, Interrupted
from consumerkit.engine.lanes.batch_size import BatchSize
from consumerkit.engine.lanes.brake_gate import BrakeGate
from consumerkit.engine.partitions.table import Partitions
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.batch import Batch, Flush
from consumerkit.engine.transaction.delivery import Decided
from consumerkit.engine.transaction.item import Item
from consumerkit.engine.transaction.receipt import Receipt
from consumerkit.engine.transaction.sharing import Sharing
from consumerkit.engine.transaction.transaction import TransactionEnded
from consumerkit.engine.transaction.unit_of_work import UnitOfWork
from consumerkit.errors import (
    CommitUnknown,
    ConfigurationError,
    Fenced,
    TablesReplaced,
    TransactionsLost,
)
from consumerkit.failpoints import reach
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.faults import Fault
from consumerkit.storage.origins import Origin, origin

LONGEST_TURN: Final = 60.0
"""Seconds that a transaction may wait for a connection and for its turn; more is a standstill."""


class HandlerHalted(Exception):
    """A retry cannot help until a person acts: a table, a column or a right is missing."""


class Executor:
    """Runs a lane's transactions, whether messages run in batches or alone.

    Args:
        sharing: The handler's declarations, and whether its messages may share a transaction.
        work: Runs a batch in a transaction.
        partitions: The assigned partitions and their parked messages; receives the receipts.
        gate: The brake.
        tell: Announces what happened.
    """

    def __init__(
        self,
        sharing: Sharing,
        work: UnitOfWork,
        partitions: Partitions,
        gate: BrakeGate,
        tell: Announcements,
    ) -> None:
        self.declared = declared = sharing.declared
        self.partitions = partitions
        self.gate = gate
        self.tell = tell
        self.sharing = sharing
        self.backoff = Backoff(tell.announce)
        self.batch_sizes = BatchSize(declared.batch_size, declared.batch_time)
        self._work = work
        self._sequence = partitions.sequences.new()
        self._under_way: tuple[Batch, float] | None = None
        self._unfinished: dict[int, Message] = {}
        # Tokens of the brake that are neither spent nor given back, by the message's place.
        self._reserved: dict[Origin, DeadMessage | None] = {}

    def begin(self, messages: Sequence[Message]) -> None:
        """Take on fresh messages; until `end`, `unfinished` has those neither finished nor parked."""
        self._unfinished = {id(message): message for message in messages}

    @property
    def unfinished(self) -> list[Message]:
        """The fresh messages in work that are neither finished nor parked."""
        return list(self._unfinished.values())

    def end(self) -> None:
        """Forget the messages that `begin` took on."""
        self._unfinished = {}

    @property
    def busy_since(self) -> float | None:
        """When the transaction under way began, by the monotonic clock; any thread may ask.

        A wait for a turn is no transaction. One that has not begun counts from when its turn is long overdue.
        """
        if (under_way := self._under_way) is None:
            return None
        batch, asked = under_way
        if batch.preparing is not None:
            return batch.preparing.overdue_since
        return asked + LONGEST_TURN if batch.begun_at is None else batch.begun_at

    def batch(self, decided: Sequence[Decided], *, flush: Flush = Flush.AT_END) -> Batch:
        """Form a batch under the fences of its partitions.

        Raises:
            Interrupted: A partition is not ours, is in doubt, or is read again from its mark.
        """
        owners: dict[TopicPartition, bytes] = {}
        items = [Item(one) for one in decided]
        for item in items:
            name = TopicPartition(item.message.topic, item.message.partition)
            if name not in owners:
                partition = self.partitions.get(name)
                if partition is None or partition.fencing_token is None:
                    raise Interrupted
                owners[name] = partition.fencing_token
        batch = Batch(items, self.sharing, owners, flush=flush, knows=self.partitions.knows)
        batch.lane = self._sequence.lane
        for item in items:
            if item.parked is not None:
                continue
            partition = self.partitions.of(item.message)
            if partition is None:
                raise Interrupted
            if partition.remembers_crashes and partition.name not in batch.reaches:
                batch.reaches[partition.name] = partition.offsets.advanced_by(_offsets(items, partition.name)) or 0
            if item.message.offset < partition.end:
                item.taken_at = partition.taken_at
            if item.message.offset < partition.forgotten_below:
                item.outdated = True
        return batch

    async def transact(self, batch: Batch) -> Receipt:
        """Run one transaction, enter its receipt and return it."""
        self.backoff.check()
        began = batch.stages.began()
        self._under_way = batch, began
        try:
            receipt = await self._work.run(batch)
        except TransactionEnded as error:
            await self._dead_letter_misuse(batch, error)
            raise
        except (Fenced, CommitUnknown) as error:
            if isinstance(error, CommitUnknown):
                # The dead letters may be durable, so the tokens reserved for them are spent.
                self._spend(batch.items)
                self._sequence.leave()
            if isinstance(error, TransactionsLost) and batch.lane == self._sequence.lane:
                self.partitions.commits_lost(error)
            # Nothing more may begin for these partitions until they are taken over again. The takeover waits
            # until this transaction can commit no more.
            self.partitions.in_doubt(batch.owners, error)
            raise Interrupted from error
        finally:
            self._under_way = None
        self._moved_on(batch)
        reach("after_commit")
        if receipt.dead:
            reach("after_dead_letter_commit")
        self.batch_sizes.succeeded(receipt.handled, receipt.seconds)
        self.backoff.over()
        self.gate.let_go(self)
        self._apply(receipt)
        self._spend_written(batch, receipt)
        self.tell.committed(batch, receipt, time.monotonic() - began)
        return receipt

    def _moved_on(self, batch: Batch) -> None:
        """Record that a batch's transaction is durable."""
        if batch.lane is not None:
            self._sequence.committed(batch.lane)

    def skip(self, messages: Sequence[Message]) -> None:
        """Finish messages of a type that the handler does not declare; the database records nothing."""
        self._finish(messages)
        self.partitions.apply(Receipt(finished=tuple(messages)))
        self.tell.skipped(len(messages))

    def _apply(self, receipt: Receipt) -> None:
        self.gate.settle(receipt)
        self._finish(receipt.finished)
        self.partitions.apply(receipt)

    def _finish(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._unfinished.pop(id(message), None)

    def reserve(self, message: Message, letter: DeadMessage | None = None) -> bool:
        """Ask the brake for a dead letter's token; it is spent later, or given back by `refund`."""
        granted = self.gate.spend() if letter is None else self.gate.spend_for(letter)
        if granted:
            self._reserved[origin(message)] = letter
        return granted

    def is_reserved(self, message: Message) -> bool:
        """Tell whether a token is reserved for a message's dead letter."""
        return origin(message) in self._reserved

    def refund(self, messages: Iterable[Message]) -> None:
        """Give back the tokens that were reserved for these messages and are not spent."""
        if self._reserved:
            for at in map(origin, messages):
                if at in self._reserved:
                    self.gate.refund(self._reserved.pop(at))

    def _spend(self, items: Iterable[Item]) -> None:
        for item in items:
            if item.token:
                self._reserved.pop(origin(item.message), None)

    def _spend_written(self, batch: Batch, receipt: Receipt) -> None:
        written = set(map(id, receipt.dead))
        self._spend(item for item in batch.items if id(item.dead) in written)

    async def _dead_letter_misuse(self, batch: Batch, error: TransactionEnded) -> None:
        """Dead-letter the messages whose claims a handler committed by itself.

        Raises:
            Interrupted: The letters are durable, but the database has lost commits: nothing more may begin.
        """
        receipt, lost = await self._write_misuse(batch, error)
        self._moved_on(batch)
        self._apply(receipt)
        self._spend_written(batch, receipt)
        self.tell.dead(receipt)
        if lost is not None:
            self.partitions.in_doubt(batch.owners, lost)
            raise Interrupted from lost

    async def _write_misuse(self, batch: Batch, error: TransactionEnded) -> tuple[Receipt, TransactionsLost | None]:
        """Return the receipt, and the error if the database has lost earlier commits."""
        lost: TransactionsLost | None = None
        while True:
            batch.lane = self._sequence.lane
            try:
                return await self._work.dead_letter_misuse(batch, error), lost
            except TransactionsLost as found:
                # The claims stand all the same: when read again, their messages would pass for processed.
                lost = found
                if batch.lane == self._sequence.lane:
                    self.partitions.commits_lost(found)
            except Exception as trouble:  # noqa: BLE001 - the outcome must be known before anything runs again
                # It may be durable all the same.
                self._sequence.leave()
                await self.backoff.wait("database", trouble)

    async def infrastructure(self, fault: Fault, error: Exception) -> None:
        """Wait out a failure that no message caused; it never counts as an attempt."""
        if fault is Fault.DEPLOY and isinstance(error, ConfigurationError | TablesReplaced):
            raise HandlerHalted(failures.described(error)) from error
        if fault is Fault.UNFIT or fault is Fault.DEPLOY:
            await self._hold(error)
        else:
            await self.backoff.wait("database", error)

    async def _hold(self, error: Exception) -> None:
        """Keep the handler's other lanes from beginning, and wait: the error concerns all of them."""
        self.gate.hold(self)
        try:
            await self.backoff.pause_handler(error)
        except Interrupted:
            self.gate.let_go(self)
            raise


def _offsets(items: Sequence[Item], name: TopicPartition) -> list[int]:
    """Return the offsets of a partition's fresh messages in a batch."""
    return [
        item.message.offset
        for item in items
        if item.parked is None and (item.message.topic, item.message.partition) == name
    ]
