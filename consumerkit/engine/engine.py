"""One handler's engine fetches messages, spreads them over lanes and commits the offsets of finished ones."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from consumerkit.concurrency import remaining
from consumerkit.engine.dead_letter_hook import DeadLetterHook, HookPlace
from consumerkit.engine.holding import Holding
from consumerkit.engine.lanes.announcements import Announcements
from consumerkit.engine.lanes.attempts import Attempts
from consumerkit.engine.lanes.brake_gate import BrakeGate
from consumerkit.engine.lanes.crashes import CrashRecord
from consumerkit.engine.lanes.exclusive import Exclusive
from consumerkit.engine.lanes.executor import Executor, HandlerHalted
from consumerkit.engine.lanes.grouping import Grouping
from consumerkit.engine.lanes.lane import Lane
from consumerkit.engine.lanes.lane_choice import Lanes
from consumerkit.engine.lanes.next_parked import NextParked
from consumerkit.engine.lanes.one_message import OneMessage
from consumerkit.engine.lanes.parked_poller import ParkedPoller
from consumerkit.engine.lanes.parked_retry import ParkedRetry
from consumerkit.engine.lanes.suspects import Suspects
from consumerkit.engine.partitions.committer import Committer
from consumerkit.engine.partitions.database_clock import DatabaseClock
from consumerkit.engine.partitions.first_runs import FirstRuns
from consumerkit.engine.partitions.ownership import Ownership
from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.engine.partitions.table import Partitions, Rules
from consumerkit.engine.rebalance import RELEASE_TIMEOUT, Rebalance
from consumerkit.engine.standstill import Standstill, why
from consumerkit.engine.topic_watch import TopicWatch
from consumerkit.engine.transaction.prepare import Preparer
from consumerkit.engine.transaction.sharing import Sharing
from consumerkit.engine.transaction.unit_of_work import UnitOfWork
from consumerkit.engine.undoing import Undoer
from consumerkit.events import Announcer
from consumerkit.failpoints import reach
from consumerkit.handlers.declaration import Declaration
from consumerkit.steps import HandlerSteps
from consumerkit.transports.base import Consumer

_log = logging.getLogger(__name__)
FETCH_TIMEOUT = 0.5
LEAVING = 5.0
"""Seconds of the grace that are reserved for leaving the group; at most a quarter of the grace."""


@dataclass(frozen=True)
class Shared:
    """Objects and limits that an engine shares with other parts of its worker.

    Attributes:
        announce: Announces events.
        exclusive: Runs messages alone that may have killed the process.
        outbox_written: Set when a transaction has written to the outbox.
        memory_budget: Bytes of messages in hand above which an engine fetches nothing.
        drain_timeout: Seconds in which a revoked partition's messages in hand are finished.
        steps: Shared by the lanes of a handler with steps; None without steps.
        hooks: Where `on_dead_letter` runs.
    """

    announce: Announcer
    exclusive: Exclusive
    outbox_written: asyncio.Event
    memory_budget: int
    drain_timeout: float
    steps: HandlerSteps | None = None
    hooks: HookPlace | None = None


class Engine:
    """Consumes for one handler.

    Args:
        declared: The handler's declarations.
        consumer: The member of the handler's group.
        works: One unit of work for each lane.
        partition_store: Takes partitions over in the database.
        shared: See `Shared`.
    """

    def __init__(
        self,
        declared: Declaration,
        consumer: Consumer,
        works: Sequence[UnitOfWork],
        partition_store: PartitionStore,
        shared: Shared,
    ) -> None:
        self.declared = declared
        self.consumer = consumer
        self._partition_store = partition_store
        self._works = works
        announce = shared.announce.for_handler(declared.name)
        rules = Rules(declared.ordering, declared.parking_limit, shared.memory_budget)
        self.partitions = partitions = Partitions(rules, partition_store.sequences, announce, shared.outbox_written)
        self._clock = DatabaseClock(partition_store.lot.dialect, partition_store.run)
        gate = BrakeGate(declared.brake, announce)
        self._lanes = Lanes(declared.ordering, self._made_lanes(gate, announce, shared.exclusive))
        first_runs = FirstRuns(consumer, partition_store, declared.start_from)
        self._ownership = Ownership(consumer, partitions, partition_store, first_runs, announce)
        self._committer = Committer(consumer, partitions, partition_store, announce)
        self._due = ParkedPoller(partition_store, partitions, self._lanes, announce)
        standstill = Standstill(announce, partial(why, gate))
        self._topics = TopicWatch(declared.topics, consumer, partitions, announce, standstill)
        self._holding = Holding(consumer, partitions, self._lanes, gate.partitions, announce)
        self._assignments = Rebalance(partitions, self._lanes, self._ownership, self._committer, shared.drain_timeout)
        steps, written = shared.steps, shared.outbox_written
        self._undoer = None if steps is None else Undoer(declared, partition_store, steps, announce, written)
        hooks = shared.hooks if declared.on_dead_letter is not None else None
        self._hook = None if hooks is None else DeadLetterHook(declared, partition_store, hooks, announce, written)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.last_turn = time.monotonic()
        self.running = False
        self.halted: asyncio.Task[bool] | None = None

    def _made_lanes(self, gate: BrakeGate, announce: Announcer, exclusive: Exclusive) -> list[Lane]:
        declared, partitions, partition_store = self.declared, self.partitions, self._partition_store
        sharing = Sharing(declared, announce)
        following = NextParked(partitions, partition_store, sharing)
        suspects = Suspects(gate, partition_store)
        made = []
        for number, work in enumerate(self._works):
            executor = Executor(sharing, work, partitions, gate, Announcements(number, announce))
            preparer = Preparer(declared, self._clock.now)
            one, crashes = OneMessage(executor, preparer, suspects), CrashRecord(executor, partition_store)
            grouping = Grouping(executor, preparer, Attempts(executor, one, crashes))
            retries = ParkedRetry(executor, one, crashes)
            made.append(Lane(grouping, retries, following, partitions, exclusive))
        return made

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
            HandlerHalted: The handler cannot run until a person acts.
            Exception: A defect; nothing unfinished is committed.
        """
        work = [lane.work() for lane in self._lanes]
        work += [self._fetch(), self._committer.run(), self._ownership.run(), self._due.run(), self._topics.run()]
        work.append(self._holding.run())
        if self._undoer is not None:
            work.append(self._undoer.run())
        if self.declared.event_time is not None:
            work.append(self._clock.run())
        if self._hook is not None:
            work.append(self._hook.run())
        self._tasks = [asyncio.create_task(coroutine) for coroutine in work]
        self.running = True
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self.running = False
        for task in done:
            if not task.cancelled():
                task.result()
        # Without an error a task ends only after `stop`. A lane that ended by itself would be a standstill.
        if not self._stopping:
            raise RuntimeError(f"handler {self.declared.name!r}: a part of its engine ended unexpectedly")
        await asyncio.wait(self._tasks)

    async def _fetch(self) -> None:
        limit = max(500, 2 * self.declared.batch_size)
        while not self._stopping:
            self.last_turn = time.monotonic()
            self._holding.look(self.last_turn)
            if not await self.partitions.budget.room(self.consumer):
                continue
            messages = await self.consumer.fetch(limit, FETCH_TIMEOUT)
            reach("after_poll")
            if messages:
                self._lanes.put(self.partitions.fetched(messages))
                await self._holding.fetched()
            self.partitions.passed(self.consumer.passed())

    # Stopping.

    async def stop(self, grace: float) -> bool:
        """Finish the transactions under way, commit, and leave the group.

        Transactions get most of `grace`, and the later steps get the rest, so an absent broker does not extend it.

        Returns:
            Whether all transactions ended in time; the others are rolled back.
        """
        reach("in_shutdown_drain")
        end = time.monotonic() + grace
        self._stopping = True
        for lane in self._lanes:
            lane.stop()
        self._assignments.drain_timeout = 0.0
        finishing = set(self._tasks[: len(self._lanes)])
        if self._hook is not None:
            self._hook.stop()
            # Between two calls it asks the database, which may not answer.
            if self._hook.busy_since is not None:
                finishing.add(self._tasks[-1])
        others = [task for task in self._tasks if task not in finishing]
        late = (await asyncio.wait(finishing, timeout=grace - min(LEAVING, grace / 4)))[1] if finishing else set()
        for task in {*late, *others[1:]}:
            task.cancel()
        if others:
            # The fetch under way must end by itself and is never cancelled. A thread stuck in a handler is not awaited.
            await asyncio.wait({*late, *others}, timeout=remaining(end))
        for task in self._tasks:  # `run` raises the first error; a second halted lane adds nothing
            if task.done() and not task.cancelled() and not isinstance(error := task.exception(), HandlerHalted | None):
                _log.error("handler %r: a part of its engine failed", self.declared.name, exc_info=error)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.consumer.stop(), remaining(end))
        await self._assignments.settle(remaining(end))
        # Lane rows that stay do no harm, and are removed when they are old.
        with suppress(Exception):
            async with asyncio.timeout(min(RELEASE_TIMEOUT, remaining(end))):
                await self._partition_store.end()
        for work in self._works:
            work.close()
        return not late and (self._hook is None or self._hook.busy_since is None)

    def oldest_transaction(self) -> float:
        """Return the seconds that the oldest transaction under way has taken."""
        now = time.monotonic()
        began = [lane.grouping.busy_since or now for lane in self._lanes]
        if self._hook is not None:
            began.append(self._hook.busy_since or now)
        return max((now - one for one in began if one < now), default=0.0)
