"""One run of one plan: sends messages, causes faults, waits until all is done, and judges."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from consumerkit import redrive
from consumerkit.transports.memory import MemoryBroker
from tests.stress import faults
from tests.stress.answers import Answers
from tests.stress.crew import Crew, staged
from tests.stress.database import Store
from tests.stress.handlers import DEAD, NAME, OUT, TOPIC, headers_of, value_of
from tests.stress.journal import Journal
from tests.stress.message_faults import SLOWED, UNREADABLE
from tests.stress.message_oracle import judge_messages
from tests.stress.oracle import PROCESSED, History, Logged, Published, Snapshot, judge
from tests.stress.plan import Given, Plan
from tests.stress.sampler import Sampler

# Without any progress for so long, a run stands still: a hundred times what the slowest wait of the product takes here.
TIMEOUT: Final = 180.0
# Once faults have stopped, all is done within so many samples, where dozens are enough; a slow machine takes them at
# longer intervals, too.
BOUND: Final = 3000


class SeenEnough(Exception):
    """Something is wrong already, so the rest of the run is skipped."""


class StoodStill(Exception):
    """There was no progress although work was left."""


@dataclass(frozen=True)
class Verdict:
    """The result of a run.

    Attributes:
        problems: What is wrong.
        void: Faults that were planned and did not fire: the run says nothing of them.
        fired: How often each fault took effect.
        seconds: How long it took.
    """

    problems: tuple[str, ...]
    void: tuple[str, ...] = ()
    fired: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    last_words: tuple[str, ...] = ()


class Run:
    """A run under way; `faults` acts on it."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.store = store
        self.journal = Journal(restored=plan.has("restore"), dsn=store.dsn)
        self.broker = MemoryBroker(topics={TOPIC: plan.partitions, OUT: 3, DEAD: 2})
        self.crew = Crew(plan, store.url, self.broker, self.journal)
        self.log: list[Logged] = []
        self.sampler = Sampler(plan, store.snapshot, self.broker, self.journal, self.log)
        self.announced_from: set[tuple[int, int]] = set()
        self._fed = 0
        self._progress: object = None
        self._progressed = time.monotonic()
        self._stopped: int | None = None
        self._accompanied = 0

    async def go(self) -> Verdict:
        """Carry the plan out, and judge."""
        began = time.monotonic()
        sampling = asyncio.create_task(self.sampler.run())
        answers = Answers(self.plan)
        try:
            with staged(self.crew), self.broker.acknowledging(answers):
                try:
                    await self._carry_out()
                finally:
                    for gate in self.crew.gates.values():
                        gate.closed = False
                    self.journal.still.clear()
                    await self.crew.stop_all()
        except SeenEnough:
            pass
        except Exception as error:  # whatever it is, it is this seed's finding
            self.journal.problems.append(f"{type(error).__name__}: {error}")
        finally:
            sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampling
        told = Counter(one.what for one in self.journal.told if one.what in UNREADABLE | {SLOWED})
        fired = self.journal.fired + answers.fired + told
        void = tuple(sorted({fault for fault in self.plan.expected if not fired[fault]}))
        problems = tuple(dict.fromkeys(self.journal.problems))
        words = tuple(self.journal.last_words()) if problems else ()
        return Verdict(problems, void, fired, time.monotonic() - began, words)

    async def _carry_out(self) -> None:
        backlog = self.plan.profile == "crossed"
        if not backlog:
            self._start()
        for step in self.plan.steps:
            await self.called_more(step.after)
            if step.what == "send":
                await self._send_wave(self.plan.waves[step.number])
            else:
                await faults.FAULTS[step.what](self, step)
        if backlog:
            self._start()
        await self.until_quiet()
        self._judge()
        if any(one.state == "dead" and one.reason not in UNREADABLE for one in self.last.dead):
            self.journal.healed = True
            await self.redrive()
            await self.until_quiet()
            self._judge()

    def _start(self) -> None:
        for _ in range(self.plan.workers):
            self.crew.start()

    async def _send_wave(self, wave: tuple[Given, ...]) -> None:
        if self.plan.profile != "slowed":
            self.send(wave)
            return
        # Once all is taken over, and one by one, so that those of several partitions wait in turn for the same lane.
        await self.until(lambda: self._taken() >= set(self.partitions), "the taking over")
        for given in wave:
            self.send((given,))
            await asyncio.sleep(0.001)

    def _taken(self) -> set[int]:
        return {partition for found in self.journal.taken.values() for _, partition in found}

    def send(self, wave: tuple[Given, ...]) -> None:
        """Append messages to the log."""
        for given in wave:
            key = None if given.key is None else b"k%d" % given.key
            value, headers = value_of(given), headers_of(given)
            sent = self.broker.append(TOPIC, value, key=key, headers=headers, partition=given.partition)
            if not given.first and self.last.ledger.get(given.id) == PROCESSED:
                self.announced_from.add((sent.partition, sent.offset))
            self.log.append(Logged(sent.partition, sent.offset, given))
        self.sampler.stir()

    def feed(self, partitions: Iterable[int], *, count: int = 6, kind: str = "fail") -> None:
        """Send more to each of these partitions, because a fault needs messages that are being handled.

        Every other message is of this kind.
        """
        made = []
        for partition in partitions:
            for number in range(count):
                self._fed += 1
                what = kind if number % 2 == 0 and partition < self.plan.partitions else "ok"
                name = f"fed-{self._fed}"
                made.append(Given(name, 100 + number // 3, partition, what, int(what == "fail"), 0, first=True))
        self.send(tuple(made))

    async def redrive(self) -> None:
        """Redrive every dead letter."""
        with self.sampler.upheaval():
            report = await redrive.redrive(self.store.url, redrive.Selection(handler=NAME), max_redrives=1000)
        self.journal.fired["redrive"] += report.done
        self.sampler.stir()

    # Waiting.

    @property
    def partitions(self) -> range:
        """The numbers of the partitions that the topic has."""
        return range(len(self.broker.logs.topics[TOPIC].partitions))

    @property
    def last(self) -> Snapshot:
        """The last snapshot of the database."""
        return self.sampler.last

    async def until(self, condition: Callable[[], bool], what: str, *, or_quiet: bool = False) -> bool:
        """Wait for a condition; return False if all work is done before.

        Raises:
            StoodStill: Nothing went on for long.
        """
        self._progressed = time.monotonic()
        while not condition():
            if or_quiet and self.sampler.quiet:
                return False
            self.watch(what)
            await asyncio.sleep(0.01)
        return True

    async def called_more(self, times: int) -> None:
        """Wait until the handlers were called so many more times, or nothing is left to do."""
        goal = len(self.journal.calls) + times
        await self.until(lambda: len(self.journal.calls) >= goal, f"{times} more calls", or_quiet=True)

    async def until_quiet(self) -> None:
        """Wait until nothing is left to do: faults have stopped."""
        self._stopped = self.sampler.samples
        self.sampler.stir()
        await self.until(lambda: self.sampler.quiet, "the end of all work")

    def watch(self, what: str) -> None:
        """Check that the workers run and make progress, while something is waited for."""
        self.crew.check()
        if self.journal.problems:
            raise SeenEnough
        self._accompany()
        committed = tuple(sorted(self.broker.committed(NAME).values()))
        last = self.last
        outcomes = (len(last.ledger), len(last.effects), len(last.dead), last.outbox)
        parked = sorted((one.id, one.attempts, one.due) for one in last.parked)
        # Only durable outcomes count: a handler that is called again and again without one makes no progress.
        progress = (committed, len(self.broker.records(OUT)), outcomes, parked, self.journal.deferred.total())
        now = time.monotonic()
        if self._stopped is not None and self.sampler.samples - self._stopped > BOUND:
            raise StoodStill(f"not all is done {BOUND} samples after the last fault; {self.sampler.left()}")
        if progress != self._progress:
            self._progress, self._progressed = progress, now
        elif now - self._progressed > TIMEOUT:
            standing = [mate.worker.readiness() for mate in self.crew.mates]
            raise StoodStill(f"nothing for {TIMEOUT:.0f} s while waiting for {what}; {self.sampler.left()}; {standing}")

    def _accompany(self) -> None:
        """Send good messages, if the others wait for another message's success.

        A suspect waits until another message has succeeded, and what cannot be read until its partition has earned it.
        """
        waiting = self.sampler.lonely
        if not waiting or self.sampler.samples <= self._accompanied:
            return
        self._accompanied = self.sampler.samples
        self.feed(self.partitions, count=1, kind="ok")
        slowed = Counter(one.partition for one in waiting if self.sampler.kind_of(one) in UNREADABLE)
        for partition, number in slowed.items():
            self.feed([partition], count=2 + int(number / self.plan.earned), kind="ok")

    # Judging.

    def _judge(self) -> None:
        # The last sample misses no transaction, because all work is done.
        history = self._history()
        self.journal.problems += judge(history) + judge_messages(history)

    def _history(self) -> History:
        return History(
            plan=self.plan,
            log=self.log,
            end=self.last,
            published=self._published(),
            committed={at.partition: offset for at, offset in self.broker.committed(NAME).items()},
            ends=self.sampler.ends(),
            ever_dead=frozenset(self.journal.ever_dead),
            announced_from=frozenset(self.announced_from),
            calls=Counter(call.id for call in self.journal.calls),
            duplicates=self.journal.duplicates,
            deadlocks=self.store.deadlocks(),
            zombies=sum(gate.committed for gate in self.crew.gates.values()),
            told=tuple(self.journal.told),
        )

    def _published(self) -> list[Published]:
        found = []
        for record in self.broker.records(OUT):
            [name] = [value for header, value in record.headers if header == "message-id"]
            what, message_id, partition, offset = json.loads(record.value or b"")
            found.append(Published(what, message_id, partition, offset, (name or b"").decode()))
        return found
