"""Carries out one run: real workers on the broker in memory and a SQLite file, until nothing is left to do."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Final

from consumerkit import events, failpoints
from consumerkit.concurrency import wait_for_first
from consumerkit.message import TopicPartition
from consumerkit.storage.outbox import MESSAGE_ID_HEADER
from consumerkit.testing.boundaries import Boundaries
from consumerkit.testing.broker import PromptMemory
from consumerkit.testing.case import Case, Plan, Result, declared_for
from consumerkit.transports.memory import MemoryBroker
from consumerkit.worker import Worker

_LOOK: Final = 0.005
_NOT_REACHED: Final = 1.0  # seconds after the last message in which a worker may still come to where it is killed
_GRACE: Final = 5.0
_PAST_DEADLINE: Final = 0.3  # seconds after which a step of a worker that was given up counts as past its deadline


class Unfinished(Exception):
    """The messages of a run were not all finished in time; the text says what was left."""


class CaseRun:
    """One run of a case.

    Args:
        case: What is tested.
        plan: The run.
        number: Tells it from the other runs.
        ignore: Columns and tables that are not compared.
    """

    def __init__(self, case: Case, plan: Plan, number: int, ignore: Collection[str]) -> None:
        self._case = case
        self._plan = plan
        self._number = number
        self._ignore = ignore
        self._file = case.file
        self._broker = MemoryBroker()
        self._workers: list[Worker] = []
        self._seen: list[events.Event] = []
        self._boundaries = Boundaries(plan.kill)
        self._visits: Counter[str] = Counter()
        self._passed_time = time.monotonic()
        self._dead_letter_topics: set[str] = set()

    async def carry_out(self) -> Result:
        """Run, and return what is left behind.

        Raises:
            Unfinished: The messages were not all finished in time.
        """
        case, plan = self._case, self._plan
        await self._file.begin(self._number, case.setup)
        before = case.happened()
        with failpoints.watched(self._boundaries):
            if plan.two:
                await self._with_two()
            else:
                self._send()
                await self._with_one()
        effects = case.happened()
        effects.subtract(before)
        return Result(
            plan=plan,
            tables=self._file.contents(self._ignore),
            effects=Counter({what: count for what, count in effects.items() if count}),
            published=self._published(),
            dead=self._file.dead(),
            why={one.message_id: one.summary for one in self._seen if isinstance(one, events.MessageDeadLettered)},
            visits=self._visits,
            was_killed=self._boundaries.killed.is_set(),
        )

    async def _with_one(self) -> None:
        async with self._worker():
            await self._until_finished()
            if self._plan.is_survey:
                await self._until_recorded()
            self._visits = self._boundaries.visits.copy()
        if self._boundaries.is_dead:
            self._boundaries.revive()
            self._file.pass_time()
            async with self._worker():
                await self._until_finished()

    async def _with_two(self) -> None:
        """Let the group give a worker up just after its first COMMIT: the other one gets its messages again."""
        async with self._worker() as group, self._worker():
            await self._until(lambda: all(one.positions() for one in self._workers), "both workers have partitions")
            self._send()
            await wait_for_first(self._boundaries.committed, within=self._case.within)
            async with self._broker.cut_off(group):
                await self._until(self._is_finished_in_time, "everything is done")
            self._visits = self._boundaries.visits.copy()

    def _send(self) -> None:
        for topic, key, value, headers, partition in self._plan.records:
            self._broker.create_topic(topic, self._plan.partitions)
            self._broker.append(topic, value, key=key, headers=headers, partition=partition)

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[str]:
        """Run a worker within the block; the value is its group."""
        worker = Worker(
            handlers=[self._case.make(self._file.url)],
            database=self._file.engine,
            kafka=PromptMemory(self._broker),
            observers=[self._seen.append],
            grace=_GRACE,
        )
        # A failpoint in the listener ends the consumer, and the watchdog would end the process of all tests for it.
        worker.stall_timeout = math.inf
        declared = declared_for(worker.declarations[0], self._plan, self._number)
        worker.declarations = (declared,)
        for topic in (*declared.topics, *(declared.publishes or ())):
            self._broker.create_topic(topic, self._plan.partitions)
        if declared.dead_letter is not None:
            self._broker.create_topic(declared.dead_letter.topic, 1)
            self._dead_letter_topics.add(declared.dead_letter.topic)
        await worker.start()
        self._workers.append(worker)
        stopping = asyncio.Event()
        self._ended = asyncio.create_task(worker.failure(stopping))
        ended = self._ended
        try:
            yield declared.group
        finally:
            self._workers.remove(worker)
            stopping.set()
            await worker.stop()
            await ended
            await self._file.close()

    async def _until_finished(self) -> None:
        """Wait until everything is done, or the worker is killed."""
        await self._until(lambda: self._boundaries.is_dead or self._is_finished(), "everything is done")
        if self._plan.kill is not None and not self._boundaries.killed.is_set():
            await self._until_recorded()
            await wait_for_first(self._boundaries.killed, within=_NOT_REACHED)

    async def _until_recorded(self) -> None:
        """Wait until the worker has passed what comes after the last COMMIT, too, or is killed there."""
        boundaries, visits = self._boundaries, self._boundaries.visits
        await self._until(lambda: boundaries.is_dead or boundaries.has_told_position, "offsets are committed")
        await self._until(
            lambda: boundaries.is_dead or visits["undo_done"] >= visits["undo_called"], "undos are recorded"
        )

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + self._case.within
        while not condition():
            if self._ended.done() and (error := self._ended.result()) is not None:
                raise Unfinished(self._unfinished(f"the worker ended with {type(error).__name__}: {error}"))
            if time.monotonic() > until:
                raise Unfinished(self._unfinished(f"not within {self._case.within:g} s: {what}"))
            await asyncio.sleep(_LOOK)

    def _is_finished(self) -> bool:
        """Tell whether the newest worker has finished the log, and nothing waits in the database."""
        positions = self._workers[-1].positions()
        return all(positions.get(at, 0) >= end for at, end in self._ends().items()) and not self._file.waiting()

    def _is_finished_in_time(self) -> bool:
        """Tell whether everything is finished, and let the deadlines pass of steps that the other worker has begun."""
        if time.monotonic() > self._passed_time + _PAST_DEADLINE:
            self._file.pass_time()
            self._passed_time = time.monotonic()
        return self._is_finished()

    def _ends(self) -> dict[TopicPartition, int]:
        topics = {one.topic for one in self._plan.records}
        logs = {topic: self._broker.logs.topics[topic].partitions for topic in topics}
        return {TopicPartition(topic, n): log.end for topic, some in logs.items() for n, log in enumerate(some)}

    def _unfinished(self, why: str) -> str:
        errors = [str(error) for one in self._seen if (error := getattr(one, "error", ""))]
        told = dict.fromkeys(errors[-3:])
        left = [self._file.waiting()] if self._file.waiting() else []
        return f"{self._plan.name}: {'; '.join([why, *left, *told])}"

    def _published(self) -> Counter[tuple[str, bytes | None, bytes | None]]:
        """Return the messages that were published, each once: the outbox sends at least once, with the same ID."""
        sent = {one.topic for one in self._plan.records}
        found = set()
        for topic in self._broker.logs.topics.keys() - sent - self._dead_letter_topics:
            for one in self._broker.records(topic):
                found.add((one.topic, one.header(MESSAGE_ID_HEADER), one.key, one.value))
        return Counter((topic, key, value) for topic, _, key, value in found)
