"""Metrics follow the events, and each has the labels that it is documented with."""

import time
from typing import Any

import pytest
from opentelemetry.metrics import Meter, MeterProvider
from prometheus_client import CollectorRegistry

from consumerkit import TopicPartition, events
from consumerkit.events import Stages
from consumerkit.monitoring import OpenTelemetryMetrics
from consumerkit.monitoring.backlog import Backlog, HandlerBacklog, TopicBacklog
from consumerkit.monitoring.metrics import Metrics

HERE, THERE = TopicPartition("t", 0), TopicPartition("t", 1)


def made() -> tuple[Metrics, CollectorRegistry]:
    registry = CollectorRegistry()
    return Metrics(registry), registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"consumerkit_{name}", {"handler": "credit", **labels})


def test_partitions_are_counted_as_they_come_and_go() -> None:
    metrics, registry = made()
    for partition in (HERE, THERE):
        metrics(events.PartitionTaken(handler="credit", partition=partition, parked=0))
    assert value(registry, "partitions") == 2
    metrics(events.PartitionStopped(handler="credit", partition=HERE, error="truncated"))
    assert value(registry, "partitions_stopped") == 1
    metrics(events.PartitionsRevoked(handler="credit", partitions=(HERE,), dropped=0, lost=False))
    assert (value(registry, "partitions"), value(registry, "partitions_stopped")) == (1, 0)


def test_the_brake_and_a_halt_are_states() -> None:
    metrics, registry = made()
    metrics(events.BrakeOn(handler="credit", wait=1.0))
    assert value(registry, "brake_on") == 1
    metrics(events.BrakeOff(handler="credit"))
    assert value(registry, "brake_on") == 0
    metrics(events.HandlerStopped(handler="credit", error="x"))
    assert value(registry, "handler_stopped") == 1


def test_a_brake_counts_only_where_there_are_partitions() -> None:
    """Only a message can release it; the process that has the partitions now has a brake of its own."""
    metrics, registry = made()
    metrics(events.PartitionTaken(handler="credit", partition=HERE, parked=0))
    metrics(events.BrakeOn(handler="credit", wait=1.0))
    metrics(events.PartitionsRevoked(handler="credit", partitions=(HERE,), dropped=0, lost=False))
    assert value(registry, "brake_on") == 0
    metrics(events.PartitionTaken(handler="credit", partition=THERE, parked=0))
    assert value(registry, "brake_on") == 1
    metrics(events.BrakeOff(handler="credit"))
    metrics(events.PartitionTaken(handler="credit", partition=HERE, parked=0))
    assert value(registry, "brake_on") == 0


def test_after_a_worker_has_stopped_nothing_is_in_flight_or_held_back() -> None:
    """A web service goes on, with the same registry."""
    metrics, registry = made()
    metrics.beat(0.0, {"credit": 3})
    metrics(events.OutboxHeldBack(topic="receipts", error="x", wait=1.0))
    metrics(events.WorkerStopped(seconds=1.0))
    assert (value(registry, "in_flight"), value(registry, "outbox_held_back", handler="")) == (0, 0)


def test_what_is_measured_has_the_time_of_each_source(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, registry = made()
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def times() -> list[float | None]:
        places = (("credit", "database"), ("credit", "broker"), ("", "database"))
        return [value(registry, "measured_timestamp_seconds", handler=name, source=source) for name, source in places]

    assert times() == [None, None, None]
    metrics.measuring(["credit"])
    assert times() == [1000.0, 1000.0, 1000.0]
    now[0] = 1030.0
    metrics.measured(Backlog((HandlerBacklog("credit", lag=7, surveyed=False),), ()))
    assert times() == [1030.0, 1000.0, 1030.0]
    now[0] = 1060.0
    metrics.measured(Backlog((HandlerBacklog("credit", lag=7),), ()))
    assert times() == [1060.0, 1060.0, 1060.0]


def test_the_outbox_is_shown_by_topic_and_falls_back_to_nothing() -> None:
    metrics, registry = made()
    metrics.measured(Backlog((HandlerBacklog("credit", parked=3),), (TopicBacklog("receipts", 7, 12.5),)))
    assert value(registry, "parked") == 3
    assert value(registry, "outbox_waiting", handler="", topic="receipts") == 7
    assert value(registry, "outbox_oldest_seconds", handler="", topic="receipts") == 12.5
    metrics.measured(Backlog((HandlerBacklog("credit"),), ()))
    assert value(registry, "parked") == 0
    assert value(registry, "outbox_waiting", handler="", topic="receipts") == 0
    held = events.OutboxHeldBack(topic="receipts", error="x", wait=1.0)
    metrics(held)
    metrics(held)
    assert value(registry, "outbox_held_back", handler="") == 1
    metrics(events.OutboxResumed(topic="receipts", seconds=1.0))
    assert value(registry, "outbox_held_back", handler="") == 0


def test_an_event_that_is_no_metric_is_none() -> None:
    metrics, registry = made()
    metrics(events.WorkerStopped(seconds=1.0))
    assert [sample for family in registry.collect() for sample in family.samples] == []


def test_what_an_alert_counts_is_shown_before_its_first_event() -> None:
    metrics, registry = made()
    metrics(events.BrakeOn(handler="credit", wait=1.0))
    metrics(events.WorkerStarted(handlers=("credit",)))
    assert value(registry, "dead_letters_total", reason="rejected") == 0
    assert value(registry, "trouble_total", where="broker") == 0
    assert value(registry, "commits_lost_total") == 0
    assert value(registry, "duplicate_age_seconds_count") == 0
    assert value(registry, "partitions") == 0
    assert (value(registry, "brake_on"), value(registry, "handler_stopped")) == (1, 0)


COMMITTED = events.GroupCommitted(
    handler="credit",
    lane=0,
    processed=7,
    duplicates=2,
    duplicates_of_dead=1,
    redelivered=1,
    duplicate_ages=(5.0, 400_000.0, 0.0),
    seconds=0.5,
    stages=Stages(commit=0.2),
)


def test_duplicates_are_told_by_cause_and_age_and_time_by_stage() -> None:
    metrics, registry = made()
    metrics(COMMITTED)
    assert value(registry, "duplicates_total", cause="redelivered") == 1
    assert value(registry, "duplicates_total", cause="resent") == 2
    assert value(registry, "duplicate_age_seconds_sum") == 400_005.0
    assert value(registry, "stage_seconds_sum", stage="commit") == 0.2
    assert value(registry, "stage_seconds_count", stage="handle") == 1


def test_an_attempt_that_is_made_again_is_a_retry() -> None:
    metrics, registry = made()
    for wait in (1.0, None):
        metrics(
            events.AttemptFailed(
                handler="credit", partition=HERE, offset=1, message_id="m", attempt=1, error="x", wait=wait
            )
        )
    assert (value(registry, "attempts_failed_total"), value(registry, "retries_total")) == (2, 1)


def test_work_left_is_all_that_is_due_and_its_age_the_oldest() -> None:
    metrics, registry = made()
    one = HandlerBacklog(
        "credit",
        lag=5,
        lag_oldest_seconds=1.0,
        parked=9,
        parked_due=2,
        parked_due_oldest_seconds=30.0,
        keys_held=3,
        keys_held_oldest_seconds=7.0,
        undos=6,
        undos_due=4,
        undos_due_oldest_seconds=40.0,
        dead_letter_calls=8,
        dead_letter_calls_due=7,
        dead_letter_calls_due_oldest_seconds=50.0,
    )
    metrics.measured(Backlog((one,), ()))
    assert (value(registry, "work_left"), value(registry, "work_left_oldest_seconds")) == (21, 50.0)


class Kept:
    """An instrument that keeps its values."""

    def __init__(self) -> None:
        self.told: list[tuple[float, Any]] = []

    def add(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self.told.append((amount, dict(attributes)))

    set = record = add


class KeepingMeter(Meter):
    """Keeps all instruments by their names."""

    def __init__(self) -> None:
        super().__init__("test")
        self.made: dict[str, Kept] = {}

    def create(self, name: str, *_: Any, **__: Any) -> Any:
        return self.made.setdefault(name, Kept())

    create_counter = create_gauge = create_histogram = create_up_down_counter = create
    create_observable_counter = create_observable_gauge = create_observable_up_down_counter = create


class Provider(MeterProvider):
    def __init__(self) -> None:
        self.meter = KeepingMeter()

    def get_meter(self, *_: Any, **__: Any) -> Meter:
        return self.meter


def test_opentelemetry_gets_the_same() -> None:
    provider = Provider()
    metrics = OpenTelemetryMetrics(provider)
    metrics(COMMITTED)
    metrics.beat(0.25, {"credit": 4})
    made = provider.meter.made
    assert (7, {"handler": "credit", "outcome": "processed"}) in made["consumerkit.messages"].told
    assert made["consumerkit.transaction_seconds"].told == [(0.5, {"handler": "credit"})]
    assert made["consumerkit.in_flight"].told == [(4, {"handler": "credit"})]
    assert made["consumerkit.loop_lag_seconds"].told == [(0.25, {})]
    registry = CollectorRegistry()
    Metrics(registry)
    assert {name.removeprefix("consumerkit.") for name in made} == {
        family.name.removeprefix("consumerkit_") for family in registry.collect()
    }
