"""Judges what the processes of a test of order left: outcomes, order, attempts, and when these were made."""

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple, Self

import psycopg

from tests.crash.ordering_app import ATTEMPTS
from tests.integration.kafka_stage import Given, KafkaStage

ON_TIME = 1.0
EARLY = 0.05
PROBE_EVERY = 0.1
# With the cores to the run alone it takes 3 ms; with two others at work 7 ms, and then a retry's dozen of round trips
# takes longer than what is due in the same second has.
QUIET = 0.005


class Attempt(NamedTuple):
    """One that was made."""

    number: int
    partition: int
    moment: float


class Retry(NamedTuple):
    """An attempt after another.

    Attributes:
        due: When it was due.
        able: When a process could make it: none is on time for a partition without an owner.
        made: When it was made.
    """

    due: float
    able: float
    made: float


@dataclass
class Probe:
    """Measures the machine beside a run, in a thread: how late a short sleep and a small transaction end.

    Others may use the machine as well, and what is late then says nothing about the worker.
    """

    dsn: str
    slow: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True, application_name="tests") as connection:
            connection.execute("CREATE TABLE probes (n int)")
            while not self._over.is_set():
                began = time.monotonic()
                time.sleep(PROBE_EVERY)
                connection.execute("INSERT INTO probes VALUES (1)")
                self.slow.append(time.monotonic() - began - PROBE_EVERY)

    @property
    def typical(self) -> float:
        """How late they end, in the mean."""
        return sum(self.slow) / max(1, len(self.slow))

    @property
    def quiet(self) -> bool:
        """Whether the machine was there for the run."""
        return self.typical < QUIET


@dataclass
class Found:
    """What a run was like.

    Attributes:
        retries: Attempts after the first, of each message.
        repeated: Attempts that a death or a fence cut off, and that were made again under their number.
        dead: Dead letters.
    """

    retries: list[Retry]
    repeated: int
    dead: int

    @property
    def on_time(self) -> float:
        """The share of retries that were made within a second from when somebody could."""
        return sum(one.made - one.able < ON_TIME for one in self.retries) / max(1, len(self.retries))

    @property
    def median(self) -> float:
        """How late the one in the middle was."""
        late = sorted(one.made - one.able for one in self.retries)
        return late[len(late) // 2] if late else 0.0

    def told(self, probe: Probe) -> str:
        """One line for people."""
        late = sorted(one.made - one.able for one in self.retries)
        raw = sum(one.made - one.due < ON_TIME for one in self.retries) / max(1, len(late))
        return (
            f"{len(late)} retries, {self.repeated} repeated, {self.dead} dead; within a second of their due time "
            f"{raw:.1%}, of when somebody had their partition {self.on_time:.1%}; median {self.median:.2f} s, "
            f"p99 {late[len(late) * 99 // 100]:.2f} s, latest {late[-1]:.2f} s; "
            f"the machine took {probe.typical * 1000:.1f} ms for nearly nothing, {max(probe.slow) * 1000:.0f} ms once"
        )


def judge(stage: KafkaStage, sent: Sequence[Given], order: str | None, wait: float) -> Found:
    """Check that each ID has one outcome, that order held, that no attempt was reset and none came early."""
    forever = sorted((one.id or b"").decode() for one in sent if b"forever" in (one.value or b""))
    every = sorted((one.id or b"").decode() for one in sent)
    effects = stage.rows("SELECT * FROM effects ORDER BY sequence")
    assert sorted([row["message_id"] for row in effects] + forever) == every
    dead = stage.dead()
    assert sorted(row["message_id"] for row in dead) == forever
    assert {(row["reason"], row["attempts"]) for row in dead} <= {("exhausted", ATTEMPTS)}
    assert stage.rows("SELECT count(*) AS n FROM consumerkit_parked_messages") == [{"n": 0}]
    stage.check_ledger()
    if order is not None:
        _check_order(effects, order)
    retries, repeated = _check_attempts(stage, wait)
    return Found(retries, repeated, len(dead))


def _check_order(effects: list[dict[str, object]], order: str) -> None:
    last: dict[object, int] = {}
    for row in effects:
        within, offset = row[order], int(str(row["offset"]))
        assert last.get(within, -1) < offset, f"{row['message_id']} of {order} {within} came after {last[within]}"
        last[within] = offset


def _check_attempts(stage: KafkaStage, wait: float) -> tuple[list[Retry], int]:
    made: defaultdict[str, list[Attempt]] = defaultdict(list)
    for row in stage.rows("SELECT *, extract(epoch FROM at)::float AS moment FROM attempts ORDER BY sequence"):
        made[row["message_id"]].append(Attempt(row["attempt"], row["partition"], row["moment"]))
    taken = _taken(stage)
    retries: list[Retry] = []
    repeated = 0
    for message_id, attempts in made.items():
        numbers = [one.number for one in attempts]
        assert numbers == sorted(numbers), f"attempts of {message_id} were reset: {numbers}"
        assert set(numbers) == set(range(1, numbers[-1] + 1)), f"attempts of {message_id} were skipped: {numbers}"
        repeated += len(numbers) - len(set(numbers)) - (numbers.count(1) - 1)
        for before, after in pairwise(attempts):
            if after.number == before.number:
                continue
            due = before.moment + wait
            assert after.moment > due - EARLY, f"{message_id}: attempt {after.number} {due - after.moment:.3f} s early"
            owned = max((one for one in taken[after.partition] if one <= after.moment), default=due)
            retries.append(Retry(due, max(due, owned), after.moment))
    return retries, repeated


def _taken(stage: KafkaStage) -> defaultdict[int, list[float]]:
    """When each partition was taken."""
    taken: defaultdict[int, list[float]] = defaultdict(list)
    for row in stage.rows(
        "SELECT partition, extract(epoch FROM at)::float AS moment FROM told WHERE what = 'PartitionTaken'"
    ):
        taken[row["partition"]].append(row["moment"])
    return taken
