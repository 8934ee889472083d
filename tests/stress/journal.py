"""What happened in a run, as far as the run itself sees it; the database and the broker tell the rest."""

from __future__ import annotations

import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from consumerkit import Context
from consumerkit.events import (
    CommitsLost,
    Event,
    GroupCommitted,
    HandlerStopped,
    MessageDeadLettered,
    MessagesForgotten,
    PartitionStopped,
    PartitionTaken,
)
from tests.stress.plan import Given


class Call(NamedTuple):
    """One call of a handler; `moment` numbers all that happens in the run."""

    moment: int
    worker: str
    id: str
    attempt: int


class Journal:
    """Takes notes; from any thread.

    Args:
        restored: Whether the database is restored from a backup, so that commits are really lost.

    Attributes:
        healed: Whether messages that failed for ever succeed from now on.
        calls: Every call of a handler, in order.
        deferred: How often each ID deferred.
        ever_dead: IDs of which a message was dead-lettered at any time.
        fired: How often each fault took effect.
        taken: The moments at which each worker took partitions over, with which.
        committed: The moments at which each worker committed something new.
        duplicates: How many messages were found to be processed already.
        problems: What was seen to be wrong while the run went on.
    """

    def __init__(self, *, restored: bool = False) -> None:
        self.healed = False
        self.calls: list[Call] = []
        self.deferred: Counter[str] = Counter()
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
        self._moments = itertools.count(1)
        self._lock = threading.Lock()

    def moment(self) -> int:
        """Return a number greater than all before."""
        return next(self._moments)

    # What the handlers call.

    def called(self, worker: str, context: Context[Any], given: Given) -> None:
        """Take note of a call."""
        self.calls.append(Call(self.moment(), worker, context.message_id, context.attempt))

    def waits(self, worker: str) -> bool:
        """Tell whether this worker is to stand still within its transaction."""
        if worker not in self.still:
            return False
        with self._lock:
            self.standing[worker] += 1
        return True

    def defers(self, given: Given) -> bool:
        """Tell whether this message is to defer once more."""
        with self._lock:
            self.deferred[given.id] += 1
            return self.deferred[given.id] <= given.times

    # What the workers announce.

    def observer(self, worker: str) -> Callable[[Event], None]:
        """Return what takes note of one worker's events."""

        def observe(event: Event) -> None:
            self.events.append((worker, event))
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

        return observe

    def last_words(self, count: int = 12) -> list[str]:
        """Return the last events, for a run that stands still."""
        return [f"{worker}: {event!r}"[:300] for worker, event in self.events[-count:]]
