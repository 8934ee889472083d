"""Watches the database and the broker during a run."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import psycopg

from consumerkit.transports.memory import MemoryBroker
from tests.stress.handlers import NAME
from tests.stress.journal import Journal
from tests.stress.message_faults import SUSPECTS, UNREADABLE
from tests.stress.oracle import HELD, Logged, Parked, Snapshot, unfinished_below
from tests.stress.plan import Plan

INTERVAL: Final = 0.15
_AT_REST: Final = 2  # so many samples in a row


class Sampler:
    """Takes samples, and checks what must hold at every moment.

    Attributes:
        last: The last snapshot.
        samples: How many were taken.
        quiet: Whether nothing is left to do, by some samples in a row.
        lonely: What is parked and waits until other messages succeed, where there are none.
    """

    def __init__(
        self,
        plan: Plan,
        snapshot: Callable[[], Snapshot],
        broker: MemoryBroker,
        journal: Journal,
        log: Sequence[Logged],
    ) -> None:
        self.last = Snapshot()
        self.samples = 0
        self.quiet = False
        self.lonely: list[Parked] = []
        self._plan = plan
        self._snapshot = snapshot
        self._broker = broker
        self._journal = journal
        self._log = log
        self._age = 0
        self._at_rest = 0
        self._upheavals = 0
        self._floors: dict[str, tuple[int, int]] = {}
        self._checked = 0

    def stir(self) -> None:
        """Forget that all work was done: there may be new work."""
        self._age += 1
        self.quiet = False
        self.lonely = []
        self._at_rest = 0

    @contextlib.contextmanager
    def upheaval(self) -> Iterator[None]:
        """Take no sample within the `with` block, and forget how far attempts had come."""
        self._upheavals += 1
        self.stir()
        try:
            yield
        finally:
            self._upheavals -= 1
            self._floors.clear()
            self._checked = len(self._journal.calls)
            self.stir()

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            if not self._upheavals:
                await self._sample()

    async def _sample(self) -> None:
        age, calls = self._age, len(self._journal.calls)
        committed = {at.partition: offset for at, offset in self._broker.committed(NAME).items()}
        try:
            found = await asyncio.to_thread(self._snapshot)
        except (psycopg.OperationalError, sqlite3.OperationalError):
            return  # away, or just being restored
        moment = self._journal.moment()
        if self._upheavals or age != self._age:
            return
        self.last = found
        self.samples += 1
        self._check(found, committed, moment)
        resting = self._rests(found) and calls == len(self._journal.calls)
        self.lonely = self._lonely(found)
        self._at_rest = self._at_rest + 1 if resting else 0
        self.quiet = self._at_rest >= _AT_REST

    def _check(self, found: Snapshot, committed: dict[int, int], moment: int) -> None:
        offsets = {"mark": found.marks} if self._plan.has("restore") else {"mark": found.marks, "offset": committed}
        for what, positions in offsets.items():
            for one in unfinished_below(positions, self._log, found)[:3]:
                at = positions[one.partition]
                words = (
                    f"the {what} of partition {one.partition} was {at}, and {one.given.id} at @{one.offset} was open"
                )
                self._journal.problems.append(words)
        if self._plan.resend_runs:
            return  # a resend takes the place of a dead one, with attempts of its own
        calls = self._journal.calls
        for call in calls[self._checked :]:
            floor, since = self._floors.get(call.id, (0, 0))
            if call.moment > since and call.attempt <= floor:
                words = f"{call.id} was called for attempt {call.attempt} after {floor} attempts were durable"
                self._journal.problems.append(words)
        self._checked = len(calls)
        for parked in found.parked:
            if parked.kind == "message" and parked.attempts > self._floors.get(parked.id, (0, 0))[0]:
                self._floors[parked.id] = (parked.attempts, moment)

    def _rests(self, found: Snapshot) -> bool:
        return not (_waiting(found) or found.outbox or self._lag(found))

    def _lonely(self, found: Snapshot) -> list[Parked]:
        waiting = [one for one in _waiting(found) if one.due]
        alone = all(self.kind_of(one) in SUSPECTS | UNREADABLE for one in waiting)
        return waiting if alone and not (found.outbox or self._lag(found)) else []

    def kind_of(self, parked: Parked) -> str:
        """Return what a parked message does."""
        at = (parked.partition, parked.offset)
        return next((one.given.kind for one in self._log if (one.partition, one.offset) == at), "")

    def _lag(self, found: Snapshot) -> dict[int, str]:
        committed = {at.partition: offset for at, offset in self._broker.committed(NAME).items()}
        return {
            partition: f"{committed.get(partition)} of {end}, mark {found.marks.get(partition)}"
            for partition, end in self.ends().items()
            if committed.get(partition, 0) < end or found.marks.get(partition, 0) < end
        }

    def ends(self) -> dict[int, int]:
        """Return the offset behind the last message of each partition."""
        return {one.partition: one.offset + 1 for one in self._log}

    def left(self) -> str:
        """Say what is left to do."""
        parked = [f"{one.id}@{one.partition}:{one.offset} {one.kind} due={one.due}" for one in self.last.parked[:6]]
        return f"lag {self._lag(self.last)}, {self.last.outbox} in the outbox, parked {parked}"


def _waiting(found: Snapshot) -> list[Parked]:
    """What is parked and will run, or waits behind nothing that holds its key."""
    held = {(one.partition, one.key) for one in found.parked if one.kind == HELD}
    return [one for one in found.parked if one.due or (one.kind != HELD and (one.partition, one.key) not in held)]
