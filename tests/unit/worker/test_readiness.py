"""Readiness: trouble shows with its way out until it ends, or until it is no longer reported."""

import threading
import time

import pytest

from consumerkit import events
from consumerkit.events import Event
from consumerkit.message import TopicPartition
from consumerkit.outcome import Reason
from consumerkit.worker.readiness import (
    DOUBT_SHOWN_AFTER,
    NO_PARTITION_SHOWN_AFTER,
    SUSPECTED,
    TROUBLE_OUTLIVES,
    States,
)

PARTITION = TopicPartition("t", 3)
OTHER = TopicPartition("t", 4)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def states(clock: Clock) -> States:
    made = States(clock)
    made(events.WorkerStarted(handlers=("credit", "mail")))
    for handler in ("credit", "mail"):
        made(events.PartitionsAssigned(handler=handler, partitions=(PARTITION,)))
    return made


def told(states: States, clock: Clock) -> list[str]:
    return [str(finding) for finding in states.readiness(clock.now).findings]


def test_a_worker_is_ready_while_it_runs_and_nothing_is_wrong(clock: Clock) -> None:
    states = States(clock)
    assert not states.readiness(clock.now).ready
    states(events.WorkerStarted(handlers=()))
    assert states.readiness(clock.now).ready
    assert str(states.readiness(clock.now)) == "ready"
    states(events.BrakeOn(handler="credit", wait=1.0))
    states(events.WorkerStopped(seconds=1.0))
    assert told(states, clock) == ["the worker has stopped (for 0 s)"]


BEGINS_AND_ENDS: list[tuple[Event, Event, str]] = [
    (
        events.PartitionStandsStill(handler="credit", partition=PARTITION, offset=5, end=9, seconds=130, reason="why"),
        events.PartitionMoves(handler="credit", partition=PARTITION),
        "credit: t[3] stands at offset 5, and its log ends at 9: why",
    ),
    (
        events.PartitionPaused(handler="credit", partition=PARTITION, reason="its lot is full"),
        events.PartitionResumed(handler="credit", partition=PARTITION),
        "credit: t[3] is paused: its lot is full",
    ),
    (
        events.PartitionPaused(handler="credit", partition=PARTITION, reason="its lot is full"),
        events.PartitionsRevoked(handler="credit", partitions=(PARTITION,), dropped=0, lost=False),
        "credit: t[3] is paused: its lot is full",
    ),
    (
        events.FenceAwaited(handler="credit", partition=PARTITION, seconds=5),
        events.PartitionTaken(handler="credit", partition=PARTITION, parked=0),
        "credit: t[3] cannot be taken over",
    ),
    (events.BrakeOn(handler="credit", wait=1.0), events.BrakeOff(handler="credit"), "credit: every message fails"),
    (
        events.HandlerPaused(handler="credit", error="two engines", wait=1.0),
        events.HandlerResumed(handler="credit"),
        "credit: paused; repair the cause",
    ),
    (
        events.PartitionStopped(handler="credit", partition=PARTITION, error="position 7 is outside the log"),
        events.PartitionsRevoked(handler="credit", partitions=(PARTITION,), dropped=0, lost=False),
        "t[3] is stopped until a person decides: position 7",
    ),
    (
        events.PartitionStopped(handler="credit", partition=PARTITION, error="x"),
        events.PartitionsAssigned(handler="credit", partitions=(PARTITION,)),
        "t[3]",
    ),
    (
        events.PartitionStopped(handler="credit", partition=PARTITION, error="deleted unread"),
        events.PartitionTaken(handler="credit", partition=PARTITION, parked=0),
        "deleted unread",
    ),
    (
        events.Trouble(handler="credit", where="database", error="gone", wait=1.0),
        events.TroubleOver(handler="credit", where="database", seconds=3.0),
        "database trouble",
    ),
    (
        events.Trouble(handler="credit", where="database", error="gone", wait=1.0),
        events.GroupCommitted(handler="credit", lane=0, processed=1),
        "gone",
    ),
    (
        events.Trouble(handler="credit", where="broker", error="gone", wait=1.0),
        events.OffsetsCommitted(handler="credit", positions=((PARTITION, 1),)),
        "broker trouble",
    ),
    (
        events.OutboxHeldBack(topic="dlq", error="UNKNOWN_TOPIC: no", wait=1.0, way_out="create it"),
        events.OutboxResumed(topic="dlq", seconds=1.0),
        "every message for topic 'dlq' stays in the outbox (UNKNOWN_TOPIC: no); create it",
    ),
    (
        events.OutboxHeldBack(topic="out", sequence=7, error="large", wait=1.0, way_out="discard it"),
        events.OutboxResumed(topic="out", sequence=7, seconds=1.0),
        "message 7 for topic 'out'",
    ),
]


@pytest.mark.parametrize("begins, ends, words", BEGINS_AND_ENDS)
def test_what_begins_is_told_until_it_ends(
    states: States, clock: Clock, begins: Event, ends: Event, words: str
) -> None:
    states(begins)
    clock.now += 5
    (found,) = told(states, clock)
    assert words in found
    assert getattr(begins, "error", "") in found
    assert found.endswith("(for 5 s)")
    states(begins)  # again: it is the same trouble, since the same time
    clock.now += 1
    assert told(states, clock) == [found.replace("5 s)", "6 s)")]
    states(ends)
    assert states.readiness(clock.now).ready


def test_one_handlers_end_is_not_anothers(states: States, clock: Clock) -> None:
    states(events.BrakeOn(handler="credit", wait=1.0))
    states(events.BrakeOff(handler="mail"))
    states(events.PartitionStopped(handler="credit", partition=PARTITION, error="x"))
    states(events.PartitionsRevoked(handler="credit", partitions=(OTHER,), dropped=0, lost=True))
    states(events.OutboxHeldBack(topic="out", sequence=7, error="large", wait=1.0))
    states(events.OutboxResumed(topic="out", seconds=1.0))
    assert len(told(states, clock)) == 3


def test_a_partition_in_doubt_is_told_only_when_it_lasts(states: States, clock: Clock) -> None:
    states(events.PartitionInDoubt(handler="credit", partition=PARTITION, error="fenced"))
    clock.now += DOUBT_SHOWN_AFTER - 1
    assert states.readiness(clock.now).ready
    clock.now += 2
    assert "t[3] may belong to another worker" in told(states, clock)[0]
    states(events.PartitionTaken(handler="credit", partition=PARTITION, parked=0))
    assert states.readiness(clock.now).ready


def test_trouble_that_is_not_told_again_is_over(states: States, clock: Clock) -> None:
    states(events.Trouble(handler="credit", where="codec", error="gone", wait=5.0))
    clock.now += 5 + TROUBLE_OUTLIVES - 1
    assert not states.readiness(clock.now).ready
    clock.now += 2
    assert states.readiness(clock.now).ready
    states(events.Trouble(handler="credit", where="codec", error="gone", wait=5.0))
    assert told(states, clock)[0].endswith("(for 0 s)")


def test_a_stopped_handler_stays_so(states: States, clock: Clock) -> None:
    states(events.HandlerStopped(handler="credit", error="no such column"))
    clock.now += 10_000
    assert told(states, clock) == [
        "credit: stopped; repair the cause and restart the worker: no such column (for 10000 s)"
    ]


def test_any_thread_may_ask_while_events_come(states: States) -> None:
    over = threading.Event()
    failures: list[BaseException] = []

    def ask() -> None:
        while not over.is_set():
            try:
                states.readiness(time.monotonic())
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(5000):
        states(events.OutboxHeldBack(topic=f"t{n % 50}", error="x", wait=1.0))
        states(events.OutboxResumed(topic=f"t{(n + 25) % 50}", seconds=1.0))
    over.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_handler_is_ready_with_partitions_or_where_others_have_them_all(clock: Clock) -> None:
    states = States(clock)
    states(events.WorkerStarted(handlers=("credit", "mail")))
    assert [one.partition(";")[0] for one in told(states, clock)] == [
        "credit: its group has assigned it no partitions yet",
        "mail: its group has assigned it no partitions yet",
    ]
    states(events.PartitionsAssigned(handler="credit", partitions=(PARTITION, OTHER)))
    states(events.PartitionsAssigned(handler="mail", partitions=()))
    assert states.readiness(clock.now).ready

    states(events.PartitionsRevoked(handler="credit", partitions=(OTHER,), dropped=0, lost=False))
    clock.now += 2 * NO_PARTITION_SHOWN_AFTER
    assert states.readiness(clock.now).ready  # it still has one
    states(events.PartitionsRevoked(handler="credit", partitions=(PARTITION,), dropped=0, lost=True))
    assert states.readiness(clock.now).ready  # the group shares them again
    clock.now += 2 * NO_PARTITION_SHOWN_AFTER
    assert [one.handler for one in states.readiness(clock.now).findings] == ["credit"]
    states(events.HandlerStopped(handler="credit", error="x"))
    assert [one.what.partition(";")[0] for one in states.readiness(clock.now).findings] == ["stopped"]


SUSPECTED_ONE = events.MessageSuspected(
    handler="credit", partition=PARTITION, offset=5, message_id="p-1", error="gone", wait=30.0
)


@pytest.mark.parametrize(
    "ends",
    [
        events.GroupCommitted(handler="credit", lane=0, processed=1),
        events.MessageDeadLettered(
            handler="credit", partition=PARTITION, offset=5, message_id="p-1", reason=Reason.REJECTED, error="gone"
        ),
        events.PartitionsRevoked(handler="credit", partitions=(PARTITION,), dropped=0, lost=False),
    ],
)
def test_a_suspected_message_is_told_of_until_a_message_has_run_or_it_is_elsewhere(
    states: States, clock: Clock, ends: Event
) -> None:
    states(SUSPECTED_ONE)
    states(events.PartitionsAssigned(handler="credit", partitions=(OTHER,)))
    states(events.GroupCommitted(handler="credit", lane=0, processed=0, parked=1))
    states(events.GroupCommitted(handler="mail", lane=0, processed=1))
    clock.now += SUSPECTED + 1
    assert "a message of t[3] fails" in told(states, clock)[0]
    states(ends)
    assert states.readiness(clock.now).ready


@pytest.mark.parametrize(
    "begins", [events.BrakeOn(handler="credit", wait=1.0), events.HandlerPaused(handler="credit", error="x", wait=1.0)]
)
def test_what_only_a_message_can_end_does_not_count_where_other_processes_have_all_partitions(
    states: States, clock: Clock, begins: Event
) -> None:
    states(begins)
    states(events.PartitionsRevoked(handler="credit", partitions=(PARTITION,), dropped=0, lost=False))
    states(events.PartitionsAssigned(handler="credit", partitions=()))
    assert states.readiness(clock.now).ready
    states(events.PartitionsAssigned(handler="credit", partitions=(OTHER,)))
    assert len(told(states, clock)) == 1  # it is still so here
