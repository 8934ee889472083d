"""The journal of a run: what only the run itself sees; the rest is in the database and the broker."""

from __future__ import annotations

import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psycopg

from consumerkit import Context, Unavailable
from consumerkit.events import (
    AttemptFailed,
    BrakeOn,
    CommitsLost,
    Event,
    GroupCommitted,
    HandlerPaused,
    HandlerStopped,
    MessageDeadLettered,
    MessagesForgotten,
    MessageSuspected,
    PartitionStopped,
    PartitionTaken,
)
from tests.stress.message_faults import SLOWED
from tests.stress.oracle import Told
from tests.stress.plan import Given


class Call(NamedTuple):
    """One call of a handler; `moment` numbers all that happens in the run."""

    moment: int
    worker: str
    id: str
    attempt: int


class Journal:
    """Records what happens, from any thread.

    Args:
        restored: Whether the database is restored from a backup, so that commits are really lost.
        dsn: The database's address; empty where that is a file.

    Attributes:
        healed: Whether messages that failed for ever succeed from now on.
        calls: Every call of a handler, in order.
        deferred: How often each ID deferred.
        erred: How often each ID met the fault that it brings along.
        told: What the workers announced of failures and of what was committed, in order.
        ever_dead: IDs with a message that was dead-lettered at any time.
        fired: How often each fault took effect.
        taken: The moments at which each worker took partitions over, with which.
        committed: The moments at which each worker committed something new.
        duplicates: How many messages were found to be processed already.
        problems: What was seen to be wrong while the run went on.
    """

    def __init__(self, *, restored: bool = False, dsn: str = "") -> None:
        self.healed = False
        self.calls: list[Call] = []
        self.deferred: Counter[str] = Counter()
        self.erred: Counter[str] = Counter()
        self.told: list[Told] = []
        self.ever_dead: set[str] = set()
        self.fired: Counter[str] = Counter()
        self.taken: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self.committed: defaultdict[str, list[int]] = defaultdict(list)
        self.duplicates = 0
        self.problems: list[str] = []
        self.events: list[tuple[str, Event]] = []
        self.still: set[str] = set()
        self.standing: Counter[str] = Counter()
        self._restored = restored
        self._dsn = dsn
        self._moments = itertools.count(1)
        self._lock = threading.Lock()

    def moment(self) -> int:
        """Return a number greater than all before."""
        return next(self._moments)

    # What the handlers call.

    def called(self, worker: str, context: Context[Any], given: Given) -> None:
        """Record a call."""
        self.calls.append(Call(self.moment(), worker, context.message_id, context.attempt))

    def waits(self, worker: str) -> bool:
        """Return whether this worker is to pause within its transaction."""
        if worker not in self.still:
            return False
        with self._lock:
            self.standing[worker] += 1
        return True

    def defers(self, given: Given) -> bool:
        """Return whether this message is to defer once more."""
        with self._lock:
            self.deferred[given.id] += 1
            return self.deferred[given.id] <= given.times

    def errs(self, given: Given) -> bool:
        """Return whether this message is to meet its own fault once more."""
        with self._lock:
            self.erred[given.id] += 1
            return not self.healed and (not given.times or self.erred[given.id] <= given.times)

    def fires(self, given: Given) -> None:
        """Record that the fault of a message took effect."""
        with self._lock:
            self.fired[given.kind] += 1

    @contextmanager
    def holds_row(self, number: int) -> Iterator[None]:
        """Lock a row in another session, for the `with` block; blocks."""
        try:
            connection = psycopg.connect(self._dsn, connect_timeout=5)
            connection.execute("SELECT n FROM stress_rows WHERE n = %s FOR UPDATE", [number])
        except psycopg.Error as error:  # ended with all others, or not to be had: nothing that a message could help
            raise Unavailable("the session that holds a row") from error
        try:
            yield
        finally:
            with suppress(psycopg.Error):
                connection.close()

    # What the workers announce.

    def observer(self, worker: str) -> Callable[[Event], None]:
        """Return an observer that records one worker's events."""

        def observe(event: Event) -> None:
            self.events.append((worker, event))
            self._note(worker, event)
            self._tell(worker, event)

        return observe

    def _note(self, worker: str, event: Event) -> None:
        match event:
            case MessageDeadLettered():
                self.ever_dead.add(event.message_id)
            case PartitionTaken():
                self.taken[worker].append((self.moment(), event.partition.partition))
            case GroupCommitted():
                self.duplicates += event.duplicates
                if event.processed or event.dead or event.parked:
                    self.committed[worker].append(self.moment())
            case PartitionStopped():
                self.problems.append(f"{event.partition} was stopped: {event.error}")
            case HandlerStopped():
                self.problems.append(f"the handler stopped: {event.error}")
            case CommitsLost() if not self._restored:
                self.problems.append(f"commits were said to be lost, and none were: {event.error}")
            case MessagesForgotten():
                self.fired["prune"] += 1
            case _:
                pass

    def _tell(self, worker: str, event: Event) -> None:
        """Record what `message_oracle` needs."""
        match event:
            case MessageDeadLettered() | MessageSuspected() | AttemptFailed():
                at = event.partition
                self.told.append(Told(worker, _word(event), event.message_id, at.partition, event.offset))
            case HandlerPaused():
                self.told.append(Told(worker, "paused"))
            case BrakeOn():
                self.told.append(Told(worker, SLOWED if event.partition else "braked"))
            case GroupCommitted() if event.processed:
                self.told.append(Told(worker, "committed"))
            case _:
                pass

    def last_words(self, count: int = 12) -> list[str]:
        """Return the last events, for a run without progress."""
        return [f"{worker}: {event!r}"[:300] for worker, event in self.events[-count:]]


def _word(event: MessageDeadLettered | MessageSuspected | AttemptFailed) -> str:
    if isinstance(event, MessageDeadLettered):
        return event.reason.value
    return "suspected" if isinstance(event, MessageSuspected) else "attempt"
