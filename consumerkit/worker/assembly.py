"""Puts the parts of a worker together: each handler's engine, the relay, retention and reports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from consumerkit.engine.dead_letter_hook import HookPlace
from consumerkit.engine.engine import Engine, Shared
from consumerkit.engine.lanes.exclusive import Exclusive
from consumerkit.engine.partitions.commit_origin import CommitOrigin
from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.engine.transaction.batch import Batch
from consumerkit.engine.transaction.receipt import Receipt
from consumerkit.engine.transaction.stepping import WithSteps
from consumerkit.engine.transaction.transaction import Transaction, TransactionEnded
from consumerkit.engine.transaction.unit_of_work import AsyncUnitOfWork, SyncUnitOfWork, UnitOfWork
from consumerkit.events import Announcer
from consumerkit.handlers.declaration import Declaration
from consumerkit.handlers.handler import Ordering
from consumerkit.maintenance.expirer import Expiry
from consumerkit.maintenance.pruner import Retention
from consumerkit.observability.spans import NO_TRACES, Traces
from consumerkit.policies.payload_retention import PayloadRetention
from consumerkit.relay import Relay
from consumerkit.steps import HandlerSteps, LaneSteps
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import Dialect, Limits
from consumerkit.storage.isolation import connection_of
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.maintenance.expiry import ExpireStatements
from consumerkit.storage.maintenance.pruning import PruneStatements
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.occupancy import oldest_waiting
from consumerkit.storage.steps import StepRows
from consumerkit.storage.tables import Tables
from consumerkit.transports.base import PlacingProducer, Subscription, Transport
from consumerkit.worker.parts import LAST_STEPS
from consumerkit.worker.reports import Reports
from consumerkit.worker.terms import terms_of

T = TypeVar("T")

# Seconds within which the server must answer: pruning and expiring may take long.
_BACKGROUND = 600.0


class InTurn:
    """A unit of work that takes turns, for a database with a single writer: SQLite's own lock is not fair.

    Without turns, a busy lane would long delay other writers, such as those of the marks.
    """

    def __init__(self, work: UnitOfWork, turn: asyncio.Lock) -> None:
        self._work = work
        self._turn = turn

    async def run(self, batch: Batch) -> Receipt:
        """See `UnitOfWork.run`."""
        async with self._turn:
            return await self._work.run(batch)

    async def dead_letter_misuse(self, batch: Batch, error: TransactionEnded) -> Receipt:
        """See `UnitOfWork.dead_letter_misuse`."""
        async with self._turn:
            return await self._work.dead_letter_misuse(batch, error)

    def close(self) -> None:
        """See `UnitOfWork.close`."""
        self._work.close()


class Traced:
    """A unit of work whose batches have spans."""

    def __init__(self, work: UnitOfWork, traces: Traces, declared: Declaration) -> None:
        self._work = work
        self._traces = traces
        self._declared = declared

    async def run(self, batch: Batch) -> Receipt:
        """See `UnitOfWork.run`."""
        messages = [item.message for item in batch.items]
        batch.spans = spans = self._traces.batch(self._declared.name, self._declared.group, messages)
        try:
            receipt = await self._work.run(batch)
        except BaseException as error:
            if batch.unprepared and batch.current is not None:
                spans.unhandled(batch.items[batch.current], type(error).__qualname__)
            spans.end(error)
            raise
        for dead in receipt.dead:
            spans.unhandled(dead, dead.reason.value)
        spans.end(None)
        return receipt

    async def dead_letter_misuse(self, batch: Batch, error: TransactionEnded) -> Receipt:
        """See `UnitOfWork.dead_letter_misuse`."""
        return await self._work.dead_letter_misuse(batch, error)

    def close(self) -> None:
        """See `UnitOfWork.close`."""
        self._work.close()


@dataclass(frozen=True)
class Assembly:
    """What all parts of a worker share, and how each is made of it."""

    database: Database
    dialect: Dialect
    tables: Tables
    limits: Limits
    announce: Announcer
    exclusive: Exclusive = field(default_factory=Exclusive)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    traces: Traces = NO_TRACES

    def engine(
        self,
        declared: Declaration,
        transport: Transport,
        number: int,
        origin: CommitOrigin,
        *,
        memory_budget: int,
        drain_timeout: float,
        outbox_written: asyncio.Event,
    ) -> Engine:
        """Return the engine of one handler, not started."""
        subscription = Subscription(
            group=declared.group,
            topics=declared.topics,
            start_from=declared.start_from,
            drain_timeout=drain_timeout,
            client_id=f"consumerkit-{declared.name}",
        )
        lanes = 1 if self.dialect.single_writer else declared.concurrency
        lot = ParkingLot(self.tables, self.dialect, number)
        steps = HandlerSteps(declared) if declared.steps else None
        hooks = HookPlace(self.database, self.limits, self._turns)
        return Engine(
            declared,
            transport.consumer(subscription),
            [self._work(declared, lot, number, steps) for _ in range(lanes)],
            PartitionStore(origin, lot, self._in_transaction, any_key=declared.ordering is Ordering.PARTITION),
            Shared(self.announce, self.exclusive, outbox_written, memory_budget, drain_timeout, steps, hooks),
        )

    def relay(self, producer: PlacingProducer, outbox_written: asyncio.Event, *, principal: str | None) -> Relay:
        """Return the relay, which sends the outbox."""
        return Relay(
            self.database,
            self.dialect,
            self.tables,
            producer,
            self.announce,
            outbox_written,
            principal=principal,
            deadline=self.limits.statement,
            traces=self.traces,
        )

    def retention(
        self,
        declarations: Sequence[Declaration],
        seconds: float | None,
        payloads: PayloadRetention,
        look: Callable[[], Awaitable[None]],
    ) -> Retention:
        """Return what prunes the ledger and expires payloads; it calls `look` in each turn."""
        guard = partial(self.dialect.relay_guard, self.database.location)
        expiring = ExpireStatements(self.tables, self.dialect)
        return Retention(
            self.run,
            PruneStatements(self.tables, self.dialect),
            [declared.name for declared in declarations],
            seconds=seconds,
            expiry=Expiry(self.run, expiring, payloads, terms_of(declarations), guard, self.announce),
            announce=self.announce,
            look=look,
        )

    def reports(self, numbers: Mapping[str, int], *, missed_after: float | None) -> Reports:
        """Return what reports from time to time on handlers, given their numbers; it observes from now on."""
        names = {number: name for name, number in numbers.items()}

        async def oldest() -> dict[str, float]:
            work = partial(oldest_waiting, tables=self.tables, consumers=tuple(names))
            found = await self.database.run(work, within=LAST_STEPS)
            return {names[number]: seconds for number, seconds in found.items()}

        reports = Reports(tuple(numbers), self.announce, oldest, missed_after=missed_after)
        self.announce.add(reports)
        return reports

    async def _in_transaction(self, work: Callable[[Connection], T]) -> T:
        """Run work in its own transaction, whatever the engine's default isolation level is."""
        # A server that does not answer does not apply its own limits either.
        async with self._turns():
            return await self.database.run(
                lambda session: work(connection_of(session, self.dialect)), within=self.limits.statement
            )

    async def run(self, work: Callable[[Session], T]) -> T:
        """Run work in its own transaction; with a single writer it takes its turn."""
        async with self._turns():
            return await self.database.run(work, within=_BACKGROUND)

    def _turns(self) -> AbstractAsyncContextManager[None]:
        return self.turn if self.dialect.single_writer else nullcontext()

    def _work(self, declared: Declaration, lot: ParkingLot, number: int, steps: HandlerSteps | None) -> UnitOfWork:
        work = self._untraced(declared, lot, number, steps)
        return work if self.traces is NO_TRACES else Traced(work, self.traces, declared)

    def _untraced(self, declared: Declaration, lot: ParkingLot, number: int, steps: HandlerSteps | None) -> UnitOfWork:
        work = self._unit_of_work(declared, lot, number)
        if self.dialect.single_writer:
            work = InTurn(work, self.turn)
        if steps is None:
            return work
        rows = StepRows(self.tables, self.dialect, number, self.limits)
        return WithSteps(work, LaneSteps(steps, rows, lot, self._in_transaction, self.announce, self.limits.idle))

    def _unit_of_work(self, declared: Declaration, lot: ParkingLot, number: int) -> UnitOfWork:
        ledger = Ledger(self.tables, self.dialect, number, declared.name)
        transaction = Transaction(ledger, lot, declared, self.limits)
        if declared.is_async:
            assert self.database.async_sessions is not None
            return AsyncUnitOfWork(self.database.async_sessions, transaction, declared, self.limits.idle)
        assert self.database.sync_sessions is not None
        return SyncUnitOfWork(self.database.sync_sessions, transaction, declared, self.limits.idle)
