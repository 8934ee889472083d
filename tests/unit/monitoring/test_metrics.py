"""Metrics follow the events, and each has the labels that it is documented with."""

from prometheus_client import CollectorRegistry

from consumerkit import TopicPartition, events
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
    metrics(events.WorkerStarted(handlers=("credit",)))
    assert [sample for family in registry.collect() for sample in family.samples] == []
