"""Readiness: what is wrong now, derived from the events, in sentences that say the way out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from consumerkit import events
from consumerkit.events import Event
from consumerkit.message import TopicPartition

DOUBT_SHOWN_AFTER: Final = 60.0
"""Seconds for which a partition may be in doubt before readiness shows it: usually it is taken over again at once."""

SUSPECTED: Final = 60.0
"""Seconds for which a message may wait without a counted attempt before readiness shows it, and beyond its wait."""

NO_PARTITION_SHOWN_AFTER: Final = 5.0
"""Seconds without a partition after which a handler that had some is reported: a rebalance causes short pauses."""

TROUBLE_OUTLIVES: Final = 60.0
"""Seconds beyond its wait after which trouble counts as over if it is not announced again."""

_OF_PARTITION: Final = ("doubt", "suspected", "stopped", "brake", "still", "fence", "paused")
_OF_HANDLER: Final = ("brake", "paused")

Clock = Callable[[], float]
_Place = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        handler: The handler's name; empty where the whole worker is concerned.
        what: What is wrong and what to do, in a sentence.
        seconds: How long it has been wrong.
    """

    handler: str
    what: str
    seconds: float

    def __str__(self) -> str:
        name = f"{self.handler}: " if self.handler else ""
        return f"{name}{self.what} (for {self.seconds:.0f} s)"


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether all is well, and if not, what is wrong.

    Example:
        >>> Readiness((Finding("credit", "the brake is on", 3.0),)).ready
        False
    """

    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def __str__(self) -> str:
        return "; ".join(map(str, self.findings)) or "ready"


@dataclass(frozen=True, slots=True)
class _State:
    handler: str
    what: str
    since: float
    after: float = 0.0
    until: float | None = None


class States:
    """An observer that remembers what events report as wrong, until they report that it is over."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._owned: dict[str, set[TopicPartition]] = {}
        self._states: dict[_Place, _State] = {("worker",): _State("", "the worker does not run", clock())}
        self._notes: Mapping[type[Event], Callable[[Any], None]] = {
            events.WorkerStarted: self._started,
            events.WorkerStopped: self._stopped,
            events.HandlerStopped: self._halted,
            events.HandlerPaused: self._paused,
            events.HandlerResumed: self._handler_resumed,
            events.MessageSuspected: self._suspected,
            events.MessageDeadLettered: self._dead_lettered,
            events.BrakeOn: self._brake,
            events.BrakeOff: self._brake_off,
            events.PartitionStopped: self._partition_stopped,
            events.PartitionInDoubt: self._in_doubt,
            events.FenceAwaited: self._fence_awaited,
            events.PartitionsAssigned: self._assigned,
            events.PartitionTaken: self._taken,
            events.PartitionStandsStill: self._stands_still,
            events.PartitionMoves: self._moves,
            events.PartitionPaused: self._partition_paused,
            events.PartitionResumed: self._partition_resumed,
            events.PartitionsRevoked: self._revoked,
            events.Trouble: self._trouble,
            events.TroubleOver: self._trouble_over,
            events.GroupCommitted: self._committed,
            events.OffsetsCommitted: self._offsets,
            events.OutboxHeldBack: self._held_back,
            events.OutboxResumed: self._resumed,
            events.OutboxTurnAwaited: self._turn_awaited,
            events.OutboxTurnCame: self._turn_came,
        }

    def __call__(self, event: Event) -> None:
        """Record an event."""
        note = self._notes.get(type(event))
        if note is not None:
            with self._lock:
                note(event)

    def readiness(self, now: float) -> Readiness:
        """Return what is wrong now."""
        with self._lock:
            states = [state for place, state in self._states.items() if not self._is_with_others(place)]
        wrong = [state for state in states if state.after <= now and (state.until is None or now < state.until)]
        return Readiness(tuple(Finding(one.handler, one.what, now - one.since) for one in wrong))

    def _is_with_others(self, place: _Place) -> bool:
        """Tell whether only a message can end the state, and all partitions are with other processes."""
        what, handler, *partition = (*place, None)
        return what in _OF_HANDLER and partition == [None] and self._owned.get(str(handler)) == set()

    def _begin(
        self, place: _Place, event: Event, what: str, *, shown_after: float = 0.0, lasting: float | None = None
    ) -> None:
        now = self._clock()
        old = self._states.get(place)
        goes_on = old is not None and (old.until is None or now < old.until)
        since = old.since if old is not None and goes_on else now
        until = None if lasting is None else now + lasting
        self._states[place] = _State(event.handler, what, since, since + shown_after, until)

    def _end(self, *place: object) -> None:
        self._states.pop(place, None)

    def _started(self, event: events.WorkerStarted) -> None:
        self._end("worker")
        for handler in event.handlers:
            self._without_partitions(replace(event, handler=handler))

    def _without_partitions(self, event: Event, shown_after: float = 0.0) -> None:
        what = (
            "its group has assigned it no partitions yet; this ends by itself when the group assigns them, or the "
            "broker misses a dead member"
        )
        self._begin(("partitions", event.handler), event, what, shown_after=shown_after)

    def _stopped(self, event: events.WorkerStopped) -> None:
        self._states.clear()
        self._begin(("worker",), event, "the worker has stopped")

    def _halted(self, event: events.HandlerStopped) -> None:
        self._end("partitions", event.handler)
        self._begin(
            ("halted", event.handler), event, f"stopped; repair the cause and restart the worker: {event.error}"
        )

    def _paused(self, event: events.HandlerPaused) -> None:
        what = (
            "paused; repair the cause: the handler goes on by itself, or after a restart with corrected code: "
            f"{event.error}"
        )
        self._begin(("paused", event.handler), event, what)

    def _handler_resumed(self, event: events.HandlerResumed) -> None:
        self._end("paused", event.handler)

    def _suspected(self, event: events.MessageSuspected) -> None:
        what = (
            f"a message of {event.partition} fails, and no other message has run to show whether only this one is at "
            "fault, so no attempt is counted; repair what it needs, or let another message run; `consumerkit parked "
            f"list` shows it, and `consumerkit parked retry-now` tries it at once: {event.error}"
        )
        place = ("suspected", event.handler, event.partition)
        self._begin(place, event, what, shown_after=SUSPECTED, lasting=event.wait + SUSPECTED)

    def _brake(self, event: events.BrakeOn) -> None:
        if event.partition is not None:
            what = (
                f"{event.partition} is slowed down, because message after message cannot be read; repair their "
                "producer, or the handler's codec and event types, and it goes on by itself"
            )
            self._begin(("brake", event.handler, event.partition), event, what)
            return
        what = (
            "every message fails, so none is dead-lettered and one is tried from time to time; repair what the "
            "handler depends on, or roll its version back, and it goes on by itself"
        )
        self._begin(("brake", event.handler), event, what)

    def _brake_off(self, event: events.BrakeOff) -> None:
        self._end("brake", event.handler, *([] if event.partition is None else [event.partition]))

    def _partition_stopped(self, event: events.PartitionStopped) -> None:
        what = f"{event.partition} is stopped until a person decides: {event.error}"
        self._begin(("stopped", event.handler, event.partition), event, what)

    def _in_doubt(self, event: events.PartitionInDoubt) -> None:
        what = (
            f"{event.partition} may belong to another worker; look for a worker that hangs while it holds the "
            f"partition, or a database that does not answer: {event.error}"
        )
        self._begin(("doubt", event.handler, event.partition), event, what, shown_after=DOUBT_SHOWN_AFTER)

    def _fence_awaited(self, event: events.FenceAwaited) -> None:
        what = (
            f"{event.partition} cannot be taken over, because a transaction of its former owner is still open; end "
            "the worker that hangs, or wait until the server ends the transaction after transaction_timeout"
        )
        self._begin(("fence", event.handler, event.partition), event, what)

    def _assigned(self, event: events.PartitionsAssigned) -> None:
        # An assignment of none is well too: the other members have all partitions, and this one stands by.
        self._end("partitions", event.handler)
        self._owned.setdefault(event.handler, set()).update(event.partitions)
        for partition in event.partitions:
            self._end("stopped", event.handler, partition)

    def _taken(self, event: events.PartitionTaken) -> None:
        # The new owner reads the partition again from its mark; if that fails, another event stops it.
        for what in ("stopped", "doubt", "fence"):
            self._end(what, event.handler, event.partition)

    def _revoked(self, event: events.PartitionsRevoked) -> None:
        owned = self._owned.setdefault(event.handler, set())
        owned.difference_update(event.partitions)
        if not owned:
            self._without_partitions(event, NO_PARTITION_SHOWN_AFTER)
        for partition in event.partitions:
            for what in _OF_PARTITION:
                self._end(what, event.handler, partition)

    def _stands_still(self, event: events.PartitionStandsStill) -> None:
        end = "" if event.end is None else f", and its log ends at {event.end}"
        what = f"{event.partition} stands at offset {event.offset}{end}: {event.reason}"
        self._begin(("still", event.handler, event.partition), event, what)

    def _moves(self, event: events.PartitionMoves) -> None:
        self._end("still", event.handler, event.partition)

    def _partition_paused(self, event: events.PartitionPaused) -> None:
        self._begin(("paused", event.handler, event.partition), event, f"{event.partition} is paused: {event.reason}")

    def _partition_resumed(self, event: events.PartitionResumed) -> None:
        self._end("paused", event.handler, event.partition)

    def _trouble(self, event: events.Trouble) -> None:
        what = f"{event.where} trouble; the worker goes on by itself once the {event.where} works: {event.error}"
        lasting = event.wait + TROUBLE_OUTLIVES
        self._begin(("trouble", event.handler, event.where), event, what, lasting=lasting)

    def _trouble_over(self, event: events.TroubleOver) -> None:
        self._end("trouble", event.handler, event.where)

    def _committed(self, event: events.GroupCommitted) -> None:
        self._end("trouble", event.handler, "database")
        if event.processed:
            # The suspected message itself, or one that lets its next failure count.
            suspected = ("suspected", event.handler)
            self._states = {place: state for place, state in self._states.items() if place[:2] != suspected}

    def _dead_lettered(self, event: events.MessageDeadLettered) -> None:
        self._end("suspected", event.handler, event.partition)

    def _offsets(self, event: events.OffsetsCommitted) -> None:
        self._end("trouble", event.handler, "broker")

    def _held_back(self, event: events.OutboxHeldBack) -> None:
        whose = "every message" if event.sequence is None else f"message {event.sequence}"
        what = f"{whose} for topic {event.topic!r} stays in the outbox ({event.error}); {event.way_out}"
        self._begin(("outbox", event.topic, event.sequence), event, what)

    def _resumed(self, event: events.OutboxResumed) -> None:
        self._end("outbox", event.topic, event.sequence)

    def _turn_awaited(self, event: events.OutboxTurnAwaited) -> None:
        what = (
            "messages wait in the outbox, and another process holds the relay's turn without a sign of life: "
            f"{event.holder}; end that process"
        )
        self._begin(("outbox turn",), event, what)

    def _turn_came(self, _: events.OutboxTurnCame) -> None:
        self._end("outbox turn")
