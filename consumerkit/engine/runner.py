"""Runs one group in one transaction, and keeps the accounts of what that made durable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from consumerkit.engine import letters
from consumerkit.engine.commit_sequence import CommitSequence
from consumerkit.engine.fresh_context import FreshContexts
from consumerkit.engine.gate import Gate
from consumerkit.engine.group import Group
from consumerkit.engine.item import Item, Verdict
from consumerkit.engine.pace import Pace
from consumerkit.engine.partition import Partition, Partitions
from consumerkit.engine.partition_brakes import is_unreadable
from consumerkit.engine.patience import Interrupted, Patience
from consumerkit.engine.prepare import Preparer
from consumerkit.engine.suspects import Suspects
from consumerkit.engine.telling import Tell
from consumerkit.engine.transaction import TransactionEnded
from consumerkit.engine.unit_of_work import UnitOfWork
from consumerkit.errors import (
    CommitsLost,
    CommitUnknown,
    ConfigurationError,
    Fenced,
    TablesReplaced,
    Unavailable,
)
from consumerkit.failpoints import reach
from consumerkit.handlers.declaration import Declaration
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.faults import Fault
from consumerkit.storage.fence import Owners
from consumerkit.storage.parked import ParkedMessage

LONGEST_TURN: Final = 60.0
"""Seconds for which a transaction waits for a connection and for its turn; more is a standstill."""


class Books(Protocol):
    """Keeps the accounts of a lane's work."""

    def finished(self, messages: Sequence[Message], published: bool) -> None:
        """Take note of messages whose outcome is durable."""

    def parked(self, message: Message, number: int) -> None:
        """Take note of a message that is in the parking lot, durably."""

    def unparked(self, message: Message, number: int) -> None:
        """Take note of a message that has left the parking lot."""

    def doubt(self, owners: Owners, error: Exception) -> None:
        """Take note that it is not certain any more that we own these partitions under these tokens."""

    def commits_lost(self, error: CommitsLost) -> None:
        """Take note that the database has lost commits, whose partitions nobody can tell."""

    async def suspect(self, partition: Partition) -> None:
        """Write down, durably, which of a partition's messages run alone in the process, or did when it died."""

    async def deliver(self, partition: Partition, parked: ParkedMessage, *, begins: bool) -> None:
        """Write down, durably, that a run of a parked message begins, or that the process has survived it."""

    def others_wait(self) -> bool:
        """Return whether other messages wait for this lane: parked ones that are due, or fresh ones."""
        ...

    async def next_parked(self, parked: ParkedMessage) -> list[ParkedMessage]:
        """Return the messages that were parked behind another one and are next, as many as may share a transaction."""
        ...


class HandlerHalted(Exception):
    """Trying again will not help before a person acts: a table, a column or a right is missing."""


class Runner:
    """What a lane's work has in common, whether messages run in groups or alone.

    Args:
        declared: The handler's declarations.
        work: Runs a group in a transaction.
        sequence: Numbers the lane's transactions.
        tell: Announces what happened.
        patience: Waits.
        partitions: What is assigned, and what of it is parked.
        books: Told what is durable and what is in doubt.
        gate: The brake.
        suspects: Tells a message's own fault from everybody's.
        clock: The database's.
    """

    def __init__(
        self,
        declared: Declaration,
        work: UnitOfWork,
        sequence: CommitSequence,
        tell: Tell,
        patience: Patience,
        partitions: Partitions,
        books: Books,
        gate: Gate,
        suspects: Suspects,
        clock: Callable[[], float | None] = time.time,
    ) -> None:
        self.declared = declared
        self.tell = tell
        self.patience = patience
        self.partitions = partitions
        self.books = books
        self.gate = gate
        self.suspects = suspects
        self.pace = Pace(declared.batch_size, declared.batch_time)
        self._under_way: tuple[Group, float] | None = None
        self._work = work
        self._sequence = sequence
        self.preparer = Preparer(declared, clock)
        self.contexts = FreshContexts()

    @property
    def busy_since(self) -> float | None:
        """When the transaction under way began, by the monotonic clock; from any thread.

        Waiting for one's turn is no transaction, so one that has not begun counts from when its turn is long overdue.
        """
        if (under_way := self._under_way) is None:
            return None
        group, asked = under_way
        return asked + LONGEST_TURN if group.begun_at is None else group.begun_at

    async def prepare(self, message: Message, attempt: int = 1) -> Item | None:
        """Return the item for a message, or None for one to skip; waits while the codec is in trouble."""
        while True:
            try:
                return self.preparer.prepare(message, attempt)
            except Unavailable as error:
                await self.patience.wait_out("codec", error)

    def group(self, items: list[Item], *, careful: bool = False, apart: bool = False) -> Group:
        """Form a group under the fences of its partitions.

        Raises:
            Interrupted: One of them is not ours, or not certain to be, or is read again from its mark.
        """
        owners: dict[TopicPartition, bytes] = {}
        for item in items:
            name = TopicPartition(item.message.topic, item.message.partition)
            if name not in owners:
                partition = self.partitions.get(name)
                if partition is None or partition.owner is None:
                    raise Interrupted
                owners[name] = partition.owner
        group = Group(items, self.declared, owners, careful=careful, apart=apart, knows=self.partitions.knows)
        group.lane = self._sequence.lane
        for item in items:
            if item.parked is not None:
                continue
            partition = self.partitions.of(item.message)
            if partition is None:
                raise Interrupted
            if partition.advances(item.message):
                group.calms[partition.name] = owners[partition.name]
            if item.message.offset < partition.forgotten_below:
                item.outdated = True
        return group

    async def transact(self, group: Group) -> None:
        """Run one transaction and account for what it made durable."""
        self.patience.check()
        began = time.monotonic()
        self._under_way = group, began
        try:
            await self._work.run(group)
        except TransactionEnded as error:
            await self._convict(group, error)
            raise
        except (Fenced, CommitUnknown) as error:
            if isinstance(error, CommitUnknown):
                # The dead letters may be there: what was reserved for them is spent.
                _spent(group.items)
                self._sequence.leave()
            if isinstance(error, CommitsLost) and group.lane == self._sequence.lane:
                self.books.commits_lost(error)
            # Nothing more may begin for these partitions until they were taken over anew, which waits for whatever of
            # this transaction may still land.
            self.books.doubt(group.owners, error)
            raise Interrupted from error
        finally:
            self._under_way = None
        self._moved_on(group)
        reach("after_commit")
        if group.dead:
            reach("after_dead_letter_commit")
        self.pace.succeeded(group.handled, group.seconds)
        self.patience.over()
        self.gate.let_go(self)
        self._settle(group, group.items)
        self.tell.committed(group, time.monotonic() - began)

    def _moved_on(self, group: Group) -> None:
        """Record that a group's transaction is durable."""
        if group.lane is not None:
            self._sequence.committed(group.lane)

    def _settle(self, group: Group, items: Sequence[Item]) -> None:
        """Enter in the books what a transaction made durable."""
        for item in items:
            if item.parked is not None:
                if not item.stays_parked:
                    self.books.unparked(item.message, item.parked.id)
            elif item.stays_parked:
                self.books.parked(item.message, item.number)
        for name in group.calms:
            if (partition := self.partitions.get(name)) is not None:
                partition.deaths = 0
        self._pay(group, items)
        fresh = [item.message for item in items if item.parked is None]
        self.books.finished(fresh, bool(group.publications))

    def _pay(self, group: Group, items: Sequence[Item]) -> None:
        """Settle the brake's account of a transaction: only dead letters that were not there before cost anything."""
        written = set(map(id, group.dead))
        buried = [item for item in items if id(item.dead) in written]
        unpaid = [item for item in buried if not item.token]
        funded = min(group.funded, sum(not is_unreadable(item) for item in unpaid))
        self.gate.partitions.succeeded(items, [item for item in unpaid if is_unreadable(item)])
        self.gate.succeeded(sum(item.verdict is Verdict.RUN for item in items), funded)
        _spent(buried)

    def refund(self, items: Sequence[Item]) -> None:
        """Give back the tokens that were reserved for dead letters and not needed."""
        for item in items:
            if item.token:
                item.token = False
                self.gate.refund(item)

    async def _convict(self, group: Group, error: TransactionEnded) -> None:
        """Bury the messages whose claims a handler committed by itself.

        Raises:
            Interrupted: That is done; but the database has lost commits, so that nothing more may begin.
        """
        lost: CommitsLost | None = None
        while True:
            group.lane = self._sequence.lane
            try:
                await self._work.convict(group, error)
            except CommitsLost as found:
                # The claims stand all the same: read again, their messages would be taken for processed.
                lost = found
                if group.lane == self._sequence.lane:
                    self.books.commits_lost(found)
            except Exception as trouble:  # noqa: BLE001 - it must be known before anything is run again
                # It may be durable all the same.
                self._sequence.leave()
                await self.patience.wait_out("database", trouble)
            else:
                break
        self._moved_on(group)
        self._settle(group, group.convicted)
        self.tell.dead(group)
        if lost is not None:
            self.books.doubt(group.owners, lost)
            raise Interrupted from lost

    async def infrastructure(self, fault: Fault, error: Exception) -> None:
        """Wait out what is no message's fault; it never counts as an attempt."""
        if fault is Fault.DEPLOY and isinstance(error, ConfigurationError | TablesReplaced):
            raise HandlerHalted(letters.described(error)) from error
        if fault is Fault.UNFIT or fault is Fault.DEPLOY:
            await self._hold(error)
        else:
            await self.patience.wait_out("database", error)

    async def _hold(self, error: Exception) -> None:
        """Keep the handler's other lanes from beginning, and wait: what is wrong is wrong for all of them."""
        self.gate.hold(self)
        try:
            await self.patience.pause_handler(error)
        except Interrupted:
            self.gate.let_go(self)
            raise


def _spent(items: Sequence[Item]) -> None:
    for item in items:
        item.token = False
