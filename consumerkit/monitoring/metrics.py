"""Metrics derived from events; labels are bounded: handlers' names, topics and fixed words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from consumerkit import events
from consumerkit.events import Event
from consumerkit.monitoring.backlog import Backlog
from consumerkit.monitoring.fixed_words import BACKLOG, CAUSES, DATABASE, OUTCOMES, PLACES, REASONS, SOURCES
from consumerkit.monitoring.handler_gauges import HandlerGauges
from consumerkit.monitoring.instruments import (
    Among,
    Begins,
    Counts,
    Instruments,
    Observes,
    OpenTelemetryInstruments,
    PrometheusInstruments,
    Shows,
)

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from prometheus_client import CollectorRegistry

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_AGES: Final = (1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, *(days * 86_400.0 for days in (1, 2, 3, 5, 7, 14, 30, 90)))
_MESSAGES: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)


class Metrics:
    """An observer that counts and measures; pass it to `Worker(observers=[...])` and serve its registry.

    `consumerkit run --http` does both by itself. In a web service, the service's own `/metrics`
    shows the metrics.

    Args:
        registry: A registry of prometheus-client, by default its global one; each holds one
            `Metrics`. Or other instruments.

    Example:
        worker = Worker(..., observers=[Metrics()])
    """

    def __init__(self, registry: CollectorRegistry | Instruments | None = None) -> None:
        self._instruments = _instruments(registry)
        self._messages = self._counter("messages", "Finished messages, by outcome.", "outcome")
        self._dead = self._counter("dead_letters", "Dead-lettered messages, by reason.", "reason")
        self._failed = self._counter("attempts_failed", "Failed attempts of single messages.")
        self._retries = self._counter("retries", "Failed attempts that are made again.")
        self._duplicates = self._counter("duplicates", "Duplicates, by source.", "cause")
        self._ages = self._histogram(
            "duplicate_age_seconds", "How long a duplicate's ID had been in the ledger.", _AGES
        )
        self._suspected = self._counter("runs_not_counted", "Failed runs of single messages that count as no attempt.")
        self._steps = self._counter("steps", "Steps of messages, by outcome.", "outcome")
        self._requests = self._counter(
            "requests", "Requests to idempotent endpoints, by what became of them.", "outcome"
        )
        self._request_time = self._histogram("request_seconds", "From a request's body to its answer.", _SECONDS)
        self._request_wait = self._histogram(
            "request_wait_seconds", "For how long a request waited for another one with its key.", _SECONDS
        )
        self._rollbacks = self._counter("rollbacks", "Transactions that were rolled back and run again.")
        self._fallback = self._counter("fallback_ids", "Messages whose ID came from a fallback source.")
        self._trouble = self._counter(
            "trouble", "Times that work waited for the database, the broker or a codec.", "where"
        )
        self._lost = self._counter("commits_lost", "Times that the database lost acknowledged transactions.")
        self._forgotten = self._counter("forgotten_ids", "Message IDs that the ledger forgot after its retention.")
        self._sent = self._counter("outbox_published", "Messages from the outbox that the broker acknowledged.")
        self._transaction = self._histogram("transaction_seconds", "From BEGIN to the answer of COMMIT.", _SECONDS)
        self._stages = self._histogram(
            "stage_seconds", "From BEGIN to the answer of COMMIT, by stage.", _SECONDS, "stage"
        )
        self._batch = self._histogram("batch_messages", "Messages finished by one transaction.", _MESSAGES)
        self._loop_lag = self._histogram(
            "loop_lag_seconds", "How late the event loop runs, measured every second.", _SECONDS
        )
        self._in_flight = self._gauge("in_flight", "Fetched messages that are not finished.", "livesum")
        own = HandlerGauges(self._gauge)
        self._halted = self._gauge("handler_stopped", "1 after the handler has stopped for good.", "livemax")
        self._alone = self._gauge(
            "one_message_transactions",
            "1 once each message has a transaction, since the handler waits for something outside.",
            "livemax",
        )
        self._held_back = self._gauge(
            "outbox_held_back", "Topics and messages that the broker does not take.", "livemax"
        )
        self._backlog = {name: self._gauge(name, text, "mostrecent") for name, text in BACKLOG.items()}
        self._outbox = self._gauge("outbox_waiting", "Messages in the outbox, by topic.", "mostrecent", "topic")
        self._measured_at = self._gauge(
            "measured_timestamp_seconds", "When what waits was measured last, as a Unix time.", "mostrecent", "source"
        )
        self._outbox_age = self._gauge(
            "outbox_oldest_seconds", "How long the oldest message in the outbox has waited.", "mostrecent", "topic"
        )
        single = (self._failed, self._retries, self._suspected, self._rollbacks, self._fallback, self._lost)
        self._begun: tuple[tuple[Begins, tuple[str, ...]], ...] = (
            *(
                (metric, ())
                for metric in (
                    *single,
                    self._forgotten,
                    self._ages,
                    own.brake,
                    self._halted,
                    own.partitions,
                )
            ),
            *((self._messages, (outcome,)) for outcome in OUTCOMES),
            *((self._dead, (reason,)) for reason in REASONS),
            *((self._duplicates, (cause,)) for cause in CAUSES),
            *((self._trouble, (place,)) for place in PLACES),
        )
        self._not_taken: set[object] = set()
        self._topics: set[str] = set()
        self._working: set[str] = set()
        self._takes: Mapping[type[Event], Callable[[Any], None]] = {
            events.WorkerStarted: self._started,
            events.WorkerStopped: self._ended,
            events.GroupCommitted: self._committed,
            events.MessagesSkipped: lambda event: self._add(self._messages, event, event.count, "skipped"),
            events.MessageDeadLettered: lambda event: self._add(self._dead, event, 1, event.reason.value),
            events.AttemptFailed: self._attempt_failed,
            events.MessageSuspected: lambda event: self._add(self._suspected, event),
            events.StepsRun: self._stepped,
            events.StepAwaited: lambda event: self._add(self._steps, event, 1, "awaited"),
            events.StepDoubted: lambda event: self._add(self._steps, event, 1, "in_doubt"),
            events.StepUndone: lambda event: self._add(self._steps, event, 1, "undone"),
            events.StepUndoFailed: lambda event: self._add(
                self._steps, event, 1, "not_undone" if event.wait is None else "undo_failed"
            ),
            events.GroupRolledBack: lambda event: self._add(self._rollbacks, event),
            events.RequestAnswered: self._answered,
            events.Trouble: lambda event: self._add(self._trouble, event, 1, event.where),
            events.CommitsLost: lambda event: self._add(self._lost, event),
            events.MessagesForgotten: lambda event: self._add(self._forgotten, event, event.count),
            events.OutboxPublished: lambda event: self._add(self._sent, event, event.count),
            **own.takes,
            events.OutsideWaitNoticed: lambda event: self._alone.set(1, event.handler),
            events.HandlerStopped: lambda event: self._halted.set(1, event.handler),
            events.OutboxHeldBack: self._outbox_held_back,
            events.OutboxResumed: self._outbox_resumed,
        }

    def __call__(self, event: Event) -> None:
        """Count an event."""
        take = self._takes.get(type(event))
        if take is not None:
            take(event)

    def measuring(self, handlers: Iterable[str]) -> None:
        """Show that measurements begin now: until there is one, its age counts from now."""
        for handler in handlers:
            for source in SOURCES:
                self._measured_at.set(time.time(), handler, source)
        self._measured_at.set(time.time(), "", DATABASE)

    def measured(self, backlog: Backlog) -> None:
        """Show what waits in the database and in the topics, and when that was measured."""
        self._measured_at.set(time.time(), "", DATABASE)
        for one in backlog.handlers:
            for source in SOURCES if one.surveyed else (DATABASE,):
                self._measured_at.set(time.time(), one.handler, source)
            for name, gauge in self._backlog.items():
                gauge.set(getattr(one, name), one.handler)
        self._backlog["left_behind"].set(backlog.left_behind, "")
        for gone in self._topics - {topic.topic for topic in backlog.outbox}:
            self._outbox.set(0, "", gone)
            self._outbox_age.set(0, "", gone)
        self._topics |= {topic.topic for topic in backlog.outbox}
        for topic in backlog.outbox:
            self._outbox.set(topic.waiting, "", topic.topic)
            self._outbox_age.set(topic.oldest_seconds, "", topic.topic)

    def beat(self, late: float, in_flight: Mapping[str, int]) -> None:
        """Show how late the event loop is, and how many messages of each handler are in flight."""
        self._loop_lag.observe(late, "")
        self._working.update(in_flight)
        for handler, count in in_flight.items():
            self._in_flight.set(count, handler)

    # What each event means.

    def _started(self, event: events.WorkerStarted) -> None:
        # A counter that appears with its first event has no increase: no alert would see that event.
        for handler in event.handlers:
            for metric, words in self._begun:
                metric.begin(handler, *words)

    def _ended(self, _: events.WorkerStopped) -> None:
        # A web service goes on without its worker, and its other workers hold nothing back for this one.
        for handler in self._working:
            self._in_flight.set(0, handler)
        if self._not_taken:
            self._not_taken.clear()
            self._held_back.set(0, "")

    def _stepped(self, event: events.StepsRun) -> None:
        for outcome, count in {"called": event.called, "reused": event.reused, "failed": event.failed}.items():
            if count:
                self._add(self._steps, event, count, outcome)

    def _answered(self, event: events.RequestAnswered) -> None:
        self._add(self._requests, event, 1, event.outcome)
        self._request_time.observe(event.seconds, event.handler)
        if event.waited:
            self._request_wait.observe(event.waited, event.handler)

    def _committed(self, event: events.GroupCommitted) -> None:
        outcomes = {
            "processed": event.processed,
            "duplicate": event.duplicates,
            "duplicate_of_dead": event.duplicates_of_dead,
            "dead": event.dead,
            "parked": event.parked,
        }
        for outcome, count in outcomes.items():
            if count:
                self._add(self._messages, event, count, outcome)
        if event.fallback_ids:
            self._add(self._fallback, event, event.fallback_ids)
        self._transaction.observe(event.seconds, event.handler)
        for stage, seconds in event.stages._asdict().items():
            self._stages.observe(seconds, event.handler, stage)
        self._batch.observe(sum(outcomes.values()), event.handler)
        self._repeated(event)

    def _repeated(self, event: events.GroupCommitted) -> None:
        count = event.duplicates + event.duplicates_of_dead
        for cause, part in (("redelivered", event.redelivered), ("resent", count - event.redelivered)):
            if part:
                self._add(self._duplicates, event, part, cause)
        for age in event.duplicate_ages:
            self._ages.observe(age, event.handler)

    def _attempt_failed(self, event: events.AttemptFailed) -> None:
        self._add(self._failed, event)
        if event.wait is not None:
            self._add(self._retries, event)

    def _outbox_held_back(self, event: events.OutboxHeldBack) -> None:
        self._not_taken.add((event.topic, event.sequence))
        self._held_back.set(len(self._not_taken), "")

    def _outbox_resumed(self, event: events.OutboxResumed) -> None:
        self._not_taken.discard((event.topic, event.sequence))
        self._held_back.set(len(self._not_taken), "")

    # How a metric is made: its first label is always `handler`, empty for the whole worker.

    @staticmethod
    def _add(counter: Counts, event: Event, count: float = 1, *labels: str) -> None:
        counter.add(count, event.handler, *labels)

    def _counter(self, name: str, text: str, *labels: str) -> Counts:
        return self._instruments.counter(name, text, ("handler", *labels))

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Observes:
        return self._instruments.histogram(name, text, ("handler", *labels), bounds)

    def _gauge(self, name: str, text: str, among: Among, *labels: str) -> Shows:
        return self._instruments.gauge(name, text, ("handler", *labels), among)


class OpenTelemetryMetrics(Metrics):
    """The same metrics through OpenTelemetry's API: `consumerkit.messages` for `consumerkit_messages_total`.

    It needs opentelemetry-api and an SDK that sends the metrics. `measured` adds what waits in the
    database.

    Args:
        provider: The provider of the meter; None takes the global one.

    Example:
        worker = Worker(..., observers=[OpenTelemetryMetrics()])
    """

    def __init__(self, provider: MeterProvider | None = None) -> None:
        super().__init__(OpenTelemetryInstruments(provider))


def _instruments(given: CollectorRegistry | Instruments | None) -> Instruments:
    if isinstance(given, OpenTelemetryInstruments):
        return given
    from prometheus_client import REGISTRY, CollectorRegistry

    if given is None:
        return PrometheusInstruments(REGISTRY)
    return PrometheusInstruments(given) if isinstance(given, CollectorRegistry) else given
