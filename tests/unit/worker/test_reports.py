"""A worker's reports: summaries, waits for partitions, and the end of trouble."""

import pytest

from consumerkit import events
from consumerkit.events import Announcer, Event
from consumerkit.message import TopicPartition
from consumerkit.observability.sentences import LINES
from consumerkit.outcome import Reason
from consumerkit.worker.reports import AWAITED_AFTER, EVERY, Reports

PARTITION = TopicPartition("t", 0)
TROUBLE = events.Trouble(handler="credit", where="database", error="gone", wait=1.0)
COMMITTED = events.GroupCommitted(handler="credit", lane=0, processed=1)
OFFSETS = events.OffsetsCommitted(handler="credit", positions=())
TAKEN = events.PartitionTaken(handler="credit", partition=PARTITION, parked=0)
ASSIGNED = events.PartitionsAssigned(handler="credit", partitions=(PARTITION,))
REVOKED = events.PartitionsRevoked(handler="credit", partitions=(PARTITION,), dropped=0, lost=True)


class Desk:
    """Reports, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[Event] = []
        self.announce = Announcer([self.told.append])
        self.reports = Reports(
            ("credit", "mail"), self.announce, self.oldest, missed_after=45.0, clock=lambda: self.now
        )
        self.announce.add(self.reports)

    async def oldest(self) -> dict[str, float]:
        return {"credit": 240.0}

    def sentences(self, told: list[Event] | None = None) -> list[str]:
        return [LINES[type(event)][1](event) for event in (self.told if told is None else told)]


def failed(wait: float | None) -> Event:
    return events.AttemptFailed(
        handler="credit", partition=PARTITION, offset=0, message_id="1", attempt=1, error="", wait=wait
    )


def test_a_summary_counts_what_happened_and_says_nothing_of_who_was_idle() -> None:
    desk = Desk()
    dead = events.MessageDeadLettered(
        handler="credit", partition=PARTITION, offset=0, message_id="1", reason=Reason.EXHAUSTED, error=""
    )
    for event in (
        events.GroupCommitted(handler="credit", lane=0, processed=1200, duplicates=2, duplicates_of_dead=1),
        events.GroupCommitted(handler="credit", lane=1, processed=4, parked=2),
        events.GroupRolledBack(handler="credit", size=3, handled=2, error=""),
        failed(1.0),
        failed(None),
        dead,
        dead,
        events.MessagesSkipped(handler="credit", count=5),
        events.OutboxPublished(count=3),
    ):
        desk.reports(event)
    desk.now += 60
    told = desk.reports.summaries({"credit": 240.0})
    assert [event.handler for event in told] == ["credit"]
    assert desk.sentences(list(told)) == [
        (
            "in 60 s: 1,204 processed, 3 duplicates, 5 messages of unknown types skipped, 1 retry, 2 dead letters, "
            "1 batch rolled back and run again; the oldest parked message has waited 4 min"
        )
    ]
    assert desk.reports.summaries({}) == []


async def test_a_minutes_summary_asks_what_waits_and_the_last_one_does_not() -> None:
    desk = Desk()
    await desk.reports._summarise()
    assert not desk.told
    desk.reports(COMMITTED)
    await desk.reports._summarise()
    desk.reports(COMMITTED)
    desk.reports.stop()
    told = [event for event in desk.told if isinstance(event, events.HandlerSummary)]
    assert [event.oldest_waiting for event in told] == [240.0, None]
    await desk.reports.run()  # ends at once


async def test_a_database_that_does_not_answer_keeps_no_summary_back() -> None:
    desk = Desk()

    async def fail() -> dict[str, float]:
        raise OSError

    desk.reports._oldest = fail
    desk.reports(COMMITTED)
    await desk.reports._summarise()
    assert desk.sentences() == ["in 0.0 s: 1 processed"]


def test_a_handler_without_partitions_says_so_with_the_reason_and_how_long_it_may_take() -> None:
    desk = Desk()
    desk.reports(events.PartitionsAssigned(handler="mail", partitions=()))
    desk.now += AWAITED_AFTER - 0.1
    assert desk.reports.awaited() == []
    desk.now += 0.2
    told = desk.reports.awaited()
    assert [event.handler for event in told] == ["credit"]
    assert desk.sentences(list(told)) == [
        (
            "waiting for partitions for 5.1 s: the group assigns them once their former members have handed them "
            "over, or the broker has missed a dead one (up to 45 s)"
        )
    ]
    assert desk.reports.awaited() == []
    desk.now += EVERY
    assert len(desk.reports.awaited()) == 1
    for event in (ASSIGNED, TAKEN):
        desk.reports(event)
    desk.now += 1000
    assert desk.reports.awaited() == []
    desk.reports(REVOKED)
    desk.now += AWAITED_AFTER
    assert len(desk.reports.awaited()) == 1


@pytest.mark.parametrize(
    "proof, where",
    [
        pytest.param(COMMITTED, "database", id="a-commit"),
        pytest.param(OFFSETS, "database", id="a-mark"),
        pytest.param(OFFSETS, "broker", id="offsets"),
        pytest.param(TAKEN, "database", id="a-take-over"),
        pytest.param(TAKEN, "broker", id="a-take-over"),
    ],
)
def test_trouble_is_over_once_something_proves_it_and_that_is_told_once(proof: Event, where: str) -> None:
    desk = Desk()
    trouble = events.Trouble(handler="credit", where=where, error="gone", wait=1.0)
    desk.announce(proof)
    desk.announce(trouble)
    desk.now += 9
    desk.announce(trouble)
    desk.announce(events.GroupCommitted(handler="mail", lane=0, processed=1))
    over = events.TroubleOver(handler="credit", where=where, seconds=9.0)
    assert over not in desk.told
    desk.announce(proof)
    desk.announce(events.TroubleOver(handler="credit", where=where, seconds=9.1))
    desk.announce(proof)
    assert [event for event in desk.told if isinstance(event, events.TroubleOver)] == [over]


def test_whoever_finds_out_first_tells_that_trouble_is_over() -> None:
    desk = Desk()

    def told() -> list[Event]:
        return [one for one in desk.told if isinstance(one, events.TroubleOver)]

    desk.announce(events.TroubleOver(handler="credit", where="codec", seconds=1.0))
    assert told() == []
    for work in ("outbox", "retention"):
        desk.announce(events.Trouble(where="database", error="gone", wait=1.0, work=work))
    desk.announce(events.TroubleOver(where="database", seconds=1.0, work="outbox"))
    desk.announce(events.TroubleOver(where="database", seconds=1.0, work="outbox"))
    desk.announce(events.TroubleOver(where="database", seconds=2.0, work="retention"))
    assert desk.sentences(told()) == [
        "outbox: database works again after 1.0 s",
        "retention: database works again after 2.0 s",
    ]
