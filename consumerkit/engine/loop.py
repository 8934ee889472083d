"""One handler's engine: fetches, spreads messages over lanes, and commits offsets of what is finished."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import cycle

from consumerkit import events
from consumerkit.concurrency import remaining
from consumerkit.engine.assignments import GIVE_BACK_TIMEOUT, Assignments
from consumerkit.engine.books import LaneBooks
from consumerkit.engine.budget import Budget, cost
from consumerkit.engine.committer import Committer
from consumerkit.engine.database_clock import DatabaseClock
from consumerkit.engine.due import DueWatch
from consumerkit.engine.fences import Fences
from consumerkit.engine.first_runs import FirstRuns
from consumerkit.engine.gate import Gate
from consumerkit.engine.holding import Holding
from consumerkit.engine.lane import Lane
from consumerkit.engine.ownership import Ownership
from consumerkit.engine.partition import Partition, Partitions
from consumerkit.engine.patience import Patience
from consumerkit.engine.pipeline import Pipeline
from consumerkit.engine.runner import HandlerHalted, Runner
from consumerkit.engine.solitude import Solitude
from consumerkit.engine.standstill import Standstill, reason
from consumerkit.engine.suspects import Suspects
from consumerkit.engine.telling import Tell
from consumerkit.engine.topic_watch import TopicWatch
from consumerkit.engine.unit_of_work import UnitOfWork
from consumerkit.errors import CommitsLost
from consumerkit.events import Announcer
from consumerkit.failpoints import reach
from consumerkit.handlers.declaration import Declaration
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.parked import ParkedMessage
from consumerkit.transports.base import Consumer, Position

_log = logging.getLogger(__name__)
FETCH_TIMEOUT = 0.5
LEAVING = 5.0
"""Seconds of a grace that are kept for leaving the group, or a quarter of a short one."""


class Engine:
    """Consumes for one handler.

    Args:
        declared: The handler's declarations.
        consumer: The member of the handler's group.
        works: One unit of work for each lane.
        fences: Takes partitions over in the database.
        announce: Told what happened.
        memory_budget: Bytes of messages in hand above which nothing is fetched.
        drain_timeout: Seconds in which a revoked partition's messages in hand are finished.
        outbox_written: Called when a transaction wrote to the outbox.
        solitude: Shared with all engines of the process.
    """

    def __init__(
        self,
        declared: Declaration,
        consumer: Consumer,
        works: Sequence[UnitOfWork],
        fences: Fences,
        announce: Announcer,
        *,
        memory_budget: int,
        drain_timeout: float,
        outbox_written: asyncio.Event,
        solitude: Solitude,
    ) -> None:
        self.declared = declared
        self.consumer = consumer
        self.outbox_written = outbox_written
        self._works = works
        self.partitions = Partitions(declared.ordering, declared.parking_limit)
        self._budget = budget = Budget(memory_budget)
        self._progressed = asyncio.Event()
        self._stopping = False
        self._announce = announce = announce.for_handler(declared.name)
        first_runs = FirstRuns(consumer, fences, declared.start_from)
        self.ownership = Ownership(consumer, self.partitions, fences, first_runs, announce, self._taken, self._given_up)
        self.committer = Committer(consumer, self.partitions, fences, announce, self)
        self.due = DueWatch(fences.lot, fences.run, self.partitions, announce, len(works), self._give)
        standstill = Standstill(announce, self._why)
        self._topics = TopicWatch(consumer, self.partitions, announce, self.ownership.doubt, standstill)
        self._solitude = solitude
        self.gate = Gate(declared.brake, announce)
        self.fences = fences
        self._clock = DatabaseClock(fences.lot.dialect, fences.run)
        self._suspects = Suspects(declared.name, self.gate, self._probe)
        self._lanes = [self._lane(number, work) for number, work in enumerate(works)]
        self._holding = Holding(consumer, self.partitions, self._lanes, self.gate.partitions, budget, announce)
        self._assignments = Assignments(
            self.partitions,
            self._lanes,
            self.ownership,
            self.committer,
            fences,
            announce,
            progressed=self._progressed,
            drain_timeout=drain_timeout,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._turns = cycle(range(len(self._lanes)))
        self.last_turn = time.monotonic()
        self.running = False
        self.halted: asyncio.Task[bool] | None = None

    def _lane(self, number: int, work: UnitOfWork) -> Lane:
        interrupted = asyncio.Event()
        books = LaneBooks(self)
        tell = Tell(number, self._announce)
        patience = Patience(self._announce, interrupted)
        gate, suspects = self.gate, self._suspects
        runner = Runner(
            self.declared,
            work,
            self.fences.sequences.new(),
            tell,
            patience,
            self.partitions,
            books,
            gate,
            suspects,
            self._clock.now,
        )
        pipeline = Pipeline(runner)
        books.lane = Lane(
            pipeline, interrupted, self.partitions, self.gate, self._solitude, self._dropped, self.due.returned
        )
        return books.lane

    async def _probe(self) -> None:
        await self.fences.run(self.fences.lot.dialect.probe)

    async def start(self) -> None:
        """Join the group.

        Raises:
            StartError: The broker refused.
        """
        if self.declared.event_time is not None:
            await self._clock.measure()
        await self.consumer.start(self._assignments)

    async def run(self) -> None:
        """Consume until `stop`.

        Raises:
            HandlerHalted: The handler cannot run before a person acts.
            Exception: A defect; nothing unfinished is committed.
        """
        work = [lane.work() for lane in self._lanes]
        work += [self._fetch(), self.committer.run(), self.ownership.run(), self.due.run(), self._topics.run()]
        if self.declared.event_time is not None:
            work.append(self._clock.run())
        self._tasks = [asyncio.create_task(coroutine) for coroutine in work]
        self.running = True
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self.running = False
        for task in done:
            if not task.cancelled():
                task.result()
        # Without an error a task ends only when `stop` was called; a lane that just ended would be a standstill.
        if not self._stopping:
            raise RuntimeError(f"handler {self.declared.name!r}: a part of its engine ended by itself")
        await asyncio.wait(self._tasks)

    async def _fetch(self) -> None:
        limit = max(500, 2 * self.declared.batch_size)
        while not self._stopping:
            self.last_turn = time.monotonic()
            self._holding.look(self.last_turn)
            if not await self._budget.room(self.consumer):
                continue
            messages = await self.consumer.fetch(limit, FETCH_TIMEOUT)
            reach("after_poll")
            if messages:
                self._spread(messages)
                await self._holding.fetched()
            self._pass_over(self.consumer.passed())

    def _spread(self, messages: Sequence[Message]) -> None:
        partitions, lanes, choose = self.partitions, self._lanes, self._choose
        taken = 0
        for message in messages:
            partition = partitions.of_fetched(message)
            # What was fetched under an assignment that is over belongs to somebody else.
            if partition is None:
                continue
            if partition.began is None:
                partition.began = message.offset
            if not partition.offsets.delivered(message.offset):
                continue
            taken += cost(message)
            partition.weight += cost(message)
            lanes[choose(message)].put(message)
        self._budget.took(taken)
        for lane in lanes:
            lane.wake()

    def _pass_over(self, passed: Mapping[TopicPartition, Position]) -> None:
        """Go on where the log goes on without a message, or its end would never be reached."""
        for name, position in passed.items():
            partition = self.partitions.get(name)
            if partition is None or partition.offsets.epoch != position.epoch:
                continue
            if partition.offsets.passed(position.offset):
                self.committer.wake()

    def _choose(self, message: Message) -> int:
        """Return the number of a message's lane: that of its ordering key, or the next one where it has no order."""
        count, ordering = len(self._lanes), self.declared.ordering
        if count == 1:
            return 0
        if ordering is Ordering.PARTITION:
            return hash((message.topic, message.partition)) % count
        if ordering is Ordering.KEY and message.key is not None:
            return hash(message.key) % count
        return next(self._turns)

    def _give(self, parked: ParkedMessage) -> bool:
        return self._lanes[self._choose(parked.message)].put_due(parked)

    def _taken(self, partition: Partition) -> None:
        """Let a partition's messages begin that was taken over."""
        self.restore(partition)
        # Where a first run starts is decided once: it is committed before anything is finished.
        self.committer.wake()
        self.due.wake()

    def _given_up(self, partition: Partition) -> None:
        """Let go of what is in hand of a partition that cannot be used before a person acts."""
        for lane in self._lanes:
            lane.drop(frozenset([partition.name]))
        self.restore(partition)

    def fenced(self, names: Collection[TopicPartition], error: Exception) -> None:
        """Take note of partitions that are not ours any more."""
        for name in names:
            partition = self.partitions.get(name)
            if partition is not None and partition.owner is not None:
                self.ownership.doubt(name, partition.owner, error)

    def commits_lost(self, error: CommitsLost) -> None:
        """Go back to what the database has: nobody can tell which transactions it has lost."""
        self._announce(events.CommitsLost(error=str(error)))
        for partition in self.partitions:
            # The lanes that begin anew know nothing of what was lost, so nothing in hand is as sure as it looks.
            partition.adrift = True
        # Given up before the lanes forget: a mark that a thread is writing looks at the lanes, and then at the owner.
        self.ownership.doubt_all(error)
        self.fences.sequences.begin_again()

    def restore(self, partition: Partition) -> None:
        """Let the lanes go on with a partition, if it is ready; else have nothing more fetched of it."""
        self._holding.settle(partition)

    def finished(self, messages: Sequence[Message]) -> None:
        """Take note of messages whose outcome is durable."""
        given_back = 0
        for message in messages:
            partition, size = self.partitions.of(message), cost(message)
            given_back += size
            if partition is not None:
                partition.offsets.finished(message.offset)
                partition.weight -= size
                if partition.held and partition.ready:
                    self.restore(partition)
                if partition.deaths and partition.calm:
                    self.ownership.calmed(partition)
        self._budget.gave_back(given_back)
        self.committer.wake()
        self._progressed.set()

    def _dropped(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if (partition := self.partitions.of(message)) is not None:
                partition.weight -= cost(message)
        self._budget.gave_back(sum(map(cost, messages)))
        self._progressed.set()

    # Stopping.

    async def stop(self, grace: float) -> bool:
        """Finish the transactions under way, commit, and leave the group.

        Transactions get most of `grace`, and what follows gets the rest, so that a broker that is away does not make
        the whole of it longer.

        Returns:
            Whether all transactions were done in time; otherwise what was left is rolled back.
        """
        reach("in_shutdown_drain")
        end = time.monotonic() + grace
        self._stopping = True
        for lane in self._lanes:
            lane.stop()
        self._assignments.drain_timeout = 0.0
        lanes, others = self._tasks[: len(self._lanes)], self._tasks[len(self._lanes) :]
        late = (await asyncio.wait(lanes, timeout=grace - min(LEAVING, grace / 4)))[1] if lanes else set()
        for task in {*late, *others[1:]}:
            task.cancel()
        if others:
            # The fetch under way is waited out, never cancelled; a thread that is stuck in a handler is not waited for.
            await asyncio.wait({*late, *others}, timeout=remaining(end))
        for task in self._tasks:  # `run` raises the first error; a second lane that cannot run adds nothing to it
            if task.done() and not task.cancelled() and not isinstance(error := task.exception(), HandlerHalted | None):
                _log.error("handler %r: a part of its engine failed", self.declared.name, exc_info=error)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.consumer.stop(), remaining(end))
        await self._assignments.settle(remaining(end))
        # What stays of them harms nobody, and is taken out when it is old.
        with suppress(Exception):
            async with asyncio.timeout(min(GIVE_BACK_TIMEOUT, remaining(end))):
                await self.fences.end()
        for work in self._works:
            work.close()
        return not late

    def _why(self, partition: Partition) -> str:
        declared = self.declared
        braking = self.gate.braking or self.gate.partitions.slows(partition.name)
        return reason(partition, declared.ordering, declared.parking_limit, braking=braking)

    def oldest_transaction(self) -> float:
        """Return how many seconds the oldest transaction under way has taken."""
        now = time.monotonic()
        began = [lane.pipeline.busy_since or now for lane in self._lanes]
        return max((now - one for one in began if one < now), default=0.0)
