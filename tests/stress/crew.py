"""The workers of a run, and the actions on them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from consumerkit import Brake, DeadLetter, Ordering, Retry, exponential, fixed
from consumerkit.engine import rebalance
from consumerkit.engine.partitions.offsets import OffsetTracker
from consumerkit.engine.transaction.receipt import Receipt
from consumerkit.engine.transaction.unit_of_work import AsyncUnitOfWork, SyncUnitOfWork
from consumerkit.errors import StartError
from consumerkit.transports.memory import Memory, MemoryBroker
from consumerkit.transports.memory.group import MemoryConsumer
from consumerkit.worker import Worker
from tests.stress.handlers import DEAD, FORMS, NAME
from tests.stress.journal import Journal
from tests.stress.message_faults import DROPPED
from tests.stress.plan import Plan

_TIMEOUT = 90.0
# Faults during which a server cannot be reached.
_AWAY = ("terminate", "terminate busy", "outage", "backup", "restore")


@dataclass
class Gate:
    """Stops a worker's transactions before they begin, as a pause of its process does.

    Attributes:
        closed: Whether it does.
        waiting: How many wait.
        inside: How many are under way.
        late: Whether others own the worker's partitions, so that nothing that begins now may be committed.
        committed: How many of those were.
    """

    closed: bool = False
    waiting: int = 0
    inside: int = 0
    late: bool = False
    committed: int = 0

    async def run(self, work: Callable[[], Awaitable[Receipt]]) -> Receipt:
        """Run a transaction through the gate."""
        self.waiting += 1
        while self.closed:  # noqa: ASYNC110 - opened from outside of any loop, too
            await asyncio.sleep(0.005)
        self.waiting -= 1
        began_late = self.late
        self.inside += 1
        try:
            receipt = await work()
        finally:
            self.inside -= 1
        self.committed += began_late
        return receipt


@contextlib.contextmanager
def gated(gates: dict[str, Gate]) -> Iterator[None]:
    """Make each worker's transactions pass its gate."""
    kinds: tuple[Any, ...] = (AsyncUnitOfWork, SyncUnitOfWork)
    before = [kind.run for kind in kinds]

    def through(run: Callable[[Any, Any], Awaitable[Receipt]]) -> Callable[[Any, Any], Awaitable[Receipt]]:
        async def gate(self: Any, group: Any) -> Receipt:
            return await gates[self._declared.handler.worker].run(lambda: run(self, group))

        return gate

    for kind, run in zip(kinds, before, strict=True):
        kind.run = through(run)
    try:
        yield
    finally:
        for kind, run in zip(kinds, before, strict=True):
            kind.run = run


@contextlib.contextmanager
def counting_drops(journal: Journal) -> Iterator[None]:
    """Record messages that are dropped to make room, and that are read again."""
    drop = OffsetTracker.drop

    def counted(self: OffsetTracker, offsets: Collection[int]) -> None:
        journal.fired[DROPPED] += len(offsets)
        drop(self, offsets)

    setattr(OffsetTracker, "drop", counted)  # noqa: B010 - a method is no attribute to be assigned
    try:
        yield
    finally:
        setattr(OffsetTracker, "drop", drop)  # noqa: B010


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Let owners that give a partition back wait for their marks, for as long as a slow machine needs to write them.

    Where a mark is not written, some messages are delivered twice: in a run in which nothing breaks, none may be.
    """
    before = rebalance.RELEASE_TIMEOUT
    setattr(rebalance, "RELEASE_TIMEOUT", 15.0)  # noqa: B010 - it is Final
    try:
        yield
    finally:
        setattr(rebalance, "RELEASE_TIMEOUT", before)  # noqa: B010


@dataclass
class Mate:
    """One worker that runs."""

    name: str
    worker: Worker
    stopping: asyncio.Event
    task: asyncio.Task[bool]

    @property
    def consumer(self) -> MemoryConsumer | None:
        """The worker's member ID in the group, once it has one."""
        engines = self.worker._parts.engines
        consumer = engines[0].consumer if engines else None
        assert consumer is None or isinstance(consumer, MemoryConsumer)
        return consumer

    def partitions(self) -> set[int]:
        """The partitions that the worker believes it has."""
        return {partition.name.partition for engine in self.worker._parts.engines for partition in engine.partitions}


@dataclass
class Crew:
    """All workers of a run."""

    plan: Plan
    url: str
    broker: MemoryBroker
    journal: Journal
    mates: list[Mate] = field(default_factory=list)
    gates: dict[str, Gate] = field(default_factory=dict)
    _count: int = 0

    def start(self, at: int | None = None) -> Mate:
        """Start a worker; with `at`, in the place of another one."""
        self._count += 1
        name = f"w{self._count}"
        self.gates[name] = Gate()
        worker = Worker(
            database=self.url,
            kafka=Memory(self.broker),
            handlers=[self._handler(name)],
            observers=[self.journal.observer(name)],
            grace=self.plan.grace,
            stall_timeout=3600.0,  # the watchdog would end the whole run
            transaction_timeout=20.0,
            memory_budget=self.plan.memory_budget,
            retention=0.2 if self.plan.has("prune") else 7 * 86_400.0,
        )
        stopping = asyncio.Event()
        mate = Mate(name, worker, stopping, asyncio.create_task(worker.run(stopping)))
        if at is None:
            self.mates.append(mate)
        else:
            self.mates[at] = mate
        return mate

    def _handler(self, worker: str) -> Any:
        plan = self.plan
        letter = DeadLetter(DEAD, hold_key=plan.hold_key, resend="run" if plan.resend_runs else "skip")
        return FORMS[plan.form, plan.on_duplicate](
            self.journal,
            worker,
            pause=plan.pause,
            publishing=plan.publishing,
            ordering=Ordering(plan.ordering),
            retry=Retry(attempts=plan.attempts, wait=fixed(plan.wait), in_place=plan.in_place),
            dead_letter=letter if plan.dead_letter else None,
            brake=Brake(allowance=plan.allowance, earned=plan.earned, probe=exponential(0.01, max=0.3)),
            concurrency=plan.lanes,
            batch_size=plan.batch_size,
            parking_limit=plan.parking_limit,
        )

    async def stop(self, at: int) -> None:
        """Stop a worker in an orderly way."""
        mate = self.mates[at]
        mate.stopping.set()
        await asyncio.wait_for(asyncio.shield(mate.task), _TIMEOUT)

    async def cancel(self, at: int) -> None:
        """Cancel the task in which a worker runs."""
        mate = self.mates[at]
        mate.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(mate.task), _TIMEOUT)

    def check(self) -> None:
        """Raise the error that ended a worker that was not told to stop.

        One that could not start while a fault kept it from a server is started again, as a supervisor does.
        """
        for at, mate in enumerate(self.mates):
            if mate.task.done() and not mate.stopping.is_set() and not mate.task.cancelled():
                if isinstance(mate.task.exception(), StartError) and self.plan.has(*_AWAY):
                    self.journal.fired["start again"] += 1
                    self.start(at)
                    continue
                mate.task.result()
                raise AssertionError(f"{mate.name} ended by itself")

    @contextlib.asynccontextmanager
    async def cut_off(self, mate: Mate) -> AsyncIterator[None]:
        """Remove a worker from the group without its knowledge."""
        members = self.broker.group(NAME).members
        consumer = mate.consumer
        assert consumer in members, f"{mate.name} is no member"
        async with self.broker.cut_off(NAME, members.index(consumer)):
            yield

    async def stop_all(self) -> None:
        """Stop all workers; one that hangs ends with the process."""
        for mate in self.mates:
            mate.stopping.set()
        tasks = [mate.task for mate in self.mates]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_TIMEOUT)
            if late:
                self.journal.problems.append(f"{len(late)} workers did not stop within {_TIMEOUT:.0f} s")


@contextlib.contextmanager
def staged(crew: Crew) -> Iterator[None]:
    """Make the product use gates, waits and counters as a run needs them, for the `with` block."""
    with unhurried(), counting_drops(crew.journal), gated(crew.gates):
        yield
