"""Reports of a worker from time to time: that it works, what it waits for, and that trouble is over."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from consumerkit import events
from consumerkit.concurrency import wait_until_set
from consumerkit.events import Announcer, Event
from consumerkit.message import TopicPartition

EVERY: Final = 60.0
"""Seconds between two summaries of a handler."""
AWAITED_AFTER: Final = 5.0
"""Seconds without partitions after which a report follows, and again every minute."""
_BEAT: Final = 1.0

Oldest = Callable[[], Awaitable[Mapping[str, float]]]
Clock = Callable[[], float]
_log = logging.getLogger(__name__)


class Reports:
    """An observer and a task that announces summaries, waits for partitions, and the end of trouble.

    Args:
        handlers: The handlers' names.
        announce: Announces the reports.
        oldest: Returns how many seconds the oldest parked message of each handler has waited.
        missed_after: Seconds after which the group removes a dead member; None where that is not
            known.
        clock: The monotonic clock.
    """

    def __init__(
        self,
        handlers: Sequence[str],
        announce: Announcer,
        oldest: Oldest,
        *,
        missed_after: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._announce = announce
        self._oldest = oldest
        self._missed_after = missed_after
        self._clock = clock
        self._lock = threading.Lock()
        self._began = self._summarised = clock()
        self._done: dict[str, Counter[str]] = {name: Counter() for name in handlers}
        self._owned: dict[str, set[TopicPartition]] = {name: set() for name in handlers}
        self._without_since: dict[str, float | None] = dict.fromkeys(handlers, self._began)
        self._told_at: dict[str, float] = {}
        self._trouble: dict[tuple[str, str], float] = {}
        self._stopping = asyncio.Event()

    def __call__(self, event: Event) -> None:
        """Record an event."""
        if event.handler not in self._done:
            return
        with self._lock:
            self._done[event.handler].update(_counted(event))
            self._note_partitions(event)
            over = self._recovered(event)
        for where, seconds in over:
            self._announce(events.TroubleOver(handler=event.handler, where=where, seconds=seconds))

    async def run(self) -> None:
        """Report, until `stop`."""
        while not await wait_until_set(self._stopping, _BEAT):
            for event in self.awaited():
                self._announce(event)
            if self._clock() - self._summarised >= EVERY:
                await self._summarise()

    def stop(self) -> None:
        """Announce a last summary, and end `run`."""
        self._stopping.set()
        for event in self.summaries({}):
            self._announce(event)

    async def _summarise(self) -> None:
        oldest: Mapping[str, float] = {}
        with self._lock:
            busy = any(self._done.values())
        if busy:
            try:
                oldest = await self._oldest()
            except Exception as error:  # noqa: BLE001 - the counts are reported anyway
                _log.debug("the longest wait is not known: %s", type(error).__name__)
        for event in self.summaries(oldest):
            self._announce(event)

    def summaries(self, oldest: Mapping[str, float]) -> list[events.HandlerSummary]:
        """Return the summary of each handler that has counts, and reset the counts."""
        now = self._clock()
        with self._lock:
            done = {name: counts for name, counts in self._done.items() if counts}
            self._done = {name: Counter() for name in self._done}
            seconds, self._summarised = now - self._summarised, now
        return [
            events.HandlerSummary(handler=name, seconds=seconds, oldest_waiting=oldest.get(name), **counts)
            for name, counts in done.items()
        ]

    def awaited(self) -> list[events.PartitionsAwaited]:
        """Return an event for each handler without partitions: first after some seconds, then every minute."""
        now, told = self._clock(), []
        with self._lock:
            for name, since in self._without_since.items():
                if since is None or now - since < AWAITED_AFTER or now - self._told_at.get(name, -EVERY) < EVERY:
                    continue
                self._told_at[name] = now
                told.append(
                    events.PartitionsAwaited(handler=name, seconds=now - since, missed_after=self._missed_after)
                )
        return told

    def _note_partitions(self, event: Event) -> None:
        name = event.handler
        if isinstance(event, events.PartitionsAssigned):
            self._owned[name].update(event.partitions)
            self._without_since[name] = None
            self._told_at.pop(name, None)
        elif isinstance(event, events.PartitionsRevoked):
            self._owned[name].difference_update(event.partitions)
            if not self._owned[name]:
                self._without_since[name] = self._clock()
        elif isinstance(event, events.HandlerStopped):
            self._without_since[name] = None

    def _recovered(self, event: Event) -> list[tuple[str, float]]:
        """Record trouble, and return what the event proves to work again; each only once."""
        name, now = event.handler, self._clock()
        if isinstance(event, events.Trouble):
            self._trouble.setdefault((name, event.where), now)
        elif isinstance(event, events.TroubleOver):
            self._trouble.pop((name, event.where), None)
        found = [(where, self._trouble.pop((name, where), None)) for where in _PROVES.get(type(event), ())]
        return [(where, now - since) for where, since in found if since is not None]


# What each event proves to work: a mark is written before offsets are committed, and taking a
# partition over asks both the database and the broker.
_PROVES: Mapping[type[Event], tuple[str, ...]] = {
    events.GroupCommitted: ("database",),
    events.OffsetsCommitted: ("database", "broker"),
    events.PartitionTaken: ("database", "broker"),
}


def _counted(event: Event) -> dict[str, int]:
    """Return what an event adds to a summary."""
    found: dict[str, int] = {}
    if isinstance(event, events.GroupCommitted):
        duplicates = event.duplicates + event.duplicates_of_dead
        found = {"processed": event.processed, "duplicates": duplicates}
    elif isinstance(event, events.AttemptFailed) and event.wait is not None:
        found = {"retries": 1}
    elif isinstance(event, events.MessageDeadLettered):
        found = {"dead": 1}
    elif isinstance(event, events.MessagesSkipped):
        found = {"skipped": event.count}
    elif isinstance(event, events.GroupRolledBack):
        found = {"rolled_back": 1}
    return {name: count for name, count in found.items() if count}
