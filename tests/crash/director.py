"""Directs a run: it feeds slices, and lets members die, join, leave and freeze."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from consumerkit.transports.kafka import Client
from tests.crash.pool import Pool
from tests.crash.sampler import Sampler
from tests.crash.verdict import FIRED, TYPICAL_GROUP
from tests.crash.workload import FAILING, Feeder, Sent, crossed, slices
from tests.services.process import wait_until

WORKERS = 2
TIMEOUT = 60.0  # seconds for steps that take a second or two on an idle machine
FREEZE_SECONDS = 4.5  # longer than a session: the group goes on without the frozen member


@dataclass(frozen=True)
class Plan:
    """What a run is made of.

    Attributes:
        messages: How many are sent at least: more follow, in slices of the same size, until all kills have fallen.
        slices: Into how many slices these are cut.
        failpoints: The named kills: each, as `name:action`, must fall `FIRED` times.
        random_kills: SIGKILLs at times of no one's choosing.
        joins: How often a third member joins, and a member leaves.
        freezes: How often a member is stopped for longer than its session, and woken.
        mutant: The rule of the product that is taken out; see `mutants`.
        kinds: Which messages fail, and how; see `workload.FAILING`.
        crossed: Send the same messages to all partitions, in opposite orders.
        slow: Seconds that each message takes.
        typical_group: How many messages the median message shares its transaction with; below it the run is void.
        arm_after: How often a process must have been given partitions before it is killed.
        stall_timeout: The workers' own.
        handed_over: Whether nothing that was finished may be delivered again, since no process is killed.
        deadline: Seconds after which nothing more is made to happen: the run is void, and ends.
    """

    transport: Client
    messages: int = 20_000
    slices: int = 20
    failpoints: tuple[str, ...] = ()
    random_kills: int = 3
    joins: int = 3
    freezes: int = 0
    seed: int = 4
    mutant: str = ""
    kinds: tuple[str, ...] = FAILING
    crossed: bool = False
    slow: float = 0.0
    typical_group: int = TYPICAL_GROUP
    arm_after: int = 2
    stall_timeout: float = 60.0
    handed_over: bool = False
    deadline: float = 900.0

    def broken(self, mutant: str) -> Self:
        """The same, on the product without one of its rules."""
        return replace(self, mutant=mutant)

    def batches(self) -> Iterator[list[Sent]]:
        """What is sent, slice by slice, without end."""
        size = self.messages // self.slices
        if self.crossed:
            return crossed(size, seed=self.seed)
        return slices(size, seed=self.seed, kinds=self.kinds)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(failpoint.split(":")[0] for failpoint in self.failpoints)


# How many visits go by before a kill falls: among a slice's first messages, at one of its first groups, or at once.
_VISITS = {"in_handler": 60, "after_poll": 2, "before_commit": 2}


class Director:
    """Feeds slices and lets members die, round after round, until all kills have fallen and all is sent.

    However many rounds that takes, no slice is smaller than another: the size of batches is the plan's.
    """

    def __init__(self, plan: Plan, pool: Pool, sampler: Sampler, feeder: Feeder, deadline: float) -> None:
        self.notes: list[str] = []
        self._plan = plan
        self._pool = pool
        self._sampler = sampler
        self._feeder = feeder
        self._deadline = deadline
        self._chance = random.Random(plan.seed)
        self._cancelled = False
        self._left = {"random": plan.random_kills, "joins": plan.joins, "freezes": plan.freezes}

    def direct(self, batches: Iterator[list[Sent]]) -> None:
        """Play all rounds; each feeds one slice to at least two workers, one of whom may go."""
        number = 0
        while (trouble := self._trouble_left()) or number < self._plan.slices:
            if trouble and time.monotonic() > self._deadline:
                self.notes.append(f"out of time after {number} slices")
                trouble = False
                self._cancelled = True
            if (trouble or number == 0) and not self._ready(trouble):
                continue
            self._feeder.send(next(batches))
            if trouble:
                self._disturb(number)
            elif self._plan.crossed:
                self._wait(lambda: self._sampler.unfinished == 0)
            number += 1

    def _ready(self, trouble: bool) -> bool:
        """Have two workers, one of whom may go, and a kill that can fall where one is still missed."""
        self._fill_up(armed=trouble)
        self._settle()
        if trouble and self._missing() and not self._can_fall():
            self._make_room()
            self._fill_up()
            self._settle()
        return bool(self._pool.armed()) or time.monotonic() > self._deadline

    def _can_fall(self) -> bool:
        """Whether a living member carries a kill and has been given partitions often enough for it to fall."""
        armed = {member.pid for member in self._pool.armed()}
        return any(member.pid in armed for member in self._pool.loaded())

    def _make_room(self) -> None:
        """Have a member that carries no kill leave: its place and its partitions go to those that carry one."""
        loaded = {member.pid for member in self._pool.loaded()}
        for member in [one for one in self._pool.armed() if one.pid not in loaded][:1]:
            self._pool.leave(member)

    def left_undone(self) -> list[str]:
        """Say what was planned and did not happen."""
        return [f"{kind}: {count} planned did not happen" for kind, count in self._left.items() if count]

    def finish(self, outbox_is_empty: Callable[[], bool]) -> None:
        """Let the survivors finish everything, then leave one after the other."""
        self._fill_up(armed=False)
        self._settle()
        try:
            wait_until(lambda: self._sampler.unfinished == 0, within=180, what="the end of all messages", every=0.2)
            wait_until(lambda: self._sampler.lag == 0, within=120, what="the commit of all offsets", every=0.2)
            wait_until(outbox_is_empty, within=120, what="an empty outbox", every=0.2)
        except TimeoutError as error:
            self.notes.append(f"{error}; {self._sampler.unfinished} unfinished, lag {self._sampler.lag}")
        while living := self._pool.living():
            self._settle()
            self._pool.leave((self._pool.armed() or living)[0])

    def _trouble_left(self) -> bool:
        return not self._cancelled and (bool(self._missing()) or any(self._left.values()))

    def _missing(self) -> Counter[str]:
        """How often each named kill must still fall."""
        wanted = Counter(dict.fromkeys(self._plan.failpoints, FIRED))
        fired = self._pool.fired()
        for failpoint in self._plan.failpoints:
            wanted[failpoint] -= fired[failpoint.split(":")[0]]
        return +wanted

    def _fill_up(self, *, armed: bool = True) -> None:
        """Keep two workers alive; each new one carries the kill that is missed most."""
        while len(self._pool.living()) < WORKERS:
            self._pool.start(self._next_failpoint() if armed else "")

    def _next_failpoint(self, *, counting: bool = True) -> str:
        """Return the most wanted kill, where those in living members' plans count as done."""
        missing = self._missing()
        for member in self._pool.loaded() if counting else ():
            missing[member.failpoint.rpartition(":")[0]] -= 1
        missing = +missing
        if not missing:
            return ""
        failpoint = missing.most_common(1)[0][0]
        return f"{failpoint}:{self._chance.randint(1, _VISITS.get(failpoint.split(':')[0], 1))}"

    def _settle(self) -> None:
        """Wait for a member that may go; where none comes, a frozen one gives the others its partitions.

        A plan in which no process may lose a session has `arm_after=1`, and never comes to that.
        """
        first = self._plan.arm_after == 1
        if not self._pool.wait_for_armed(TIMEOUT if first else 5) and not first:
            for member in self._pool.living()[:1]:
                self._pool.freeze(member, FREEZE_SECONDS)
            self._pool.wait_for_armed(TIMEOUT)

    def _disturb(self, number: int) -> None:
        """Do what is due in this round while the slice is handled."""
        armed = self._pool.armed()
        due = number % 3
        if due == 0 and self._left["joins"] and armed:
            self._left["joins"] -= 1
            joined = self._pool.start(self._next_failpoint(counting=False))
            self._wait(lambda: self._pool.assigned(joined) or not joined.alive)
            self._pool.leave((self._pool.armed() or armed)[0])
        elif due == 1 and self._left["random"] and armed:
            time.sleep(self._chance.uniform(0.0, 0.4))
            # It may already have been killed by its own plan: then this was no random kill.
            if armed[0].alive:
                self._pool.kill(armed[0])
                self._left["random"] -= 1
        elif due == 2 and self._left["freezes"] and armed:
            self._left["freezes"] -= 1
            self._pool.freeze(armed[0], FREEZE_SECONDS)
        self._wait(lambda: len(self._pool.living()) < WORKERS or self._sampler.unfinished == 0)

    def _wait(self, condition: Callable[[], bool]) -> None:
        try:
            wait_until(condition, within=TIMEOUT, what="the round's end")
        except TimeoutError:
            return
