import inspect
import json
import logging
import os
from datetime import UTC, datetime
from typing import Any

import pytest

from consumerkit import events
from consumerkit.events import Event
from consumerkit.message import TopicPartition
from consumerkit.observability.logs import JsonFormatter, LoggingObserver, TextFormatter, configure
from consumerkit.outcome import Reason

PARTITION = TopicPartition("payments", 3)

TOLD: list[tuple[Event, int, str]] = [
    (events.WorkerStarted(handlers=("credit", "mail")), logging.INFO, "worker started: credit, mail"),
    (events.WorkerStopped(seconds=1.26), logging.INFO, "worker stopped in 1.3 s"),
    (
        events.PartitionsAssigned(handler="credit", partitions=(PARTITION, TopicPartition("payments", 1))),
        logging.INFO,
        "credit: got payments[1], payments[3]",
    ),
    (
        events.PartitionsRevoked(handler="credit", partitions=(PARTITION,), dropped=2, lost=False),
        logging.INFO,
        "credit: gave back payments[3]; 2 messages left for the next owner",
    ),
    (
        events.PartitionsRevoked(handler="credit", partitions=(PARTITION,), dropped=0, lost=True),
        logging.WARNING,
        "credit: lost payments[3]",
    ),
    (
        events.PartitionStopped(handler="credit", partition=PARTITION, error="offset 5 is outside the log"),
        logging.ERROR,
        "credit: payments[3] is stopped and not read any further: offset 5 is outside the log",
    ),
    (
        events.GroupCommitted(handler="credit", lane=1, processed=400, duplicates=20, dead=1, seconds=0.0123),
        logging.DEBUG,
        "credit: committed in 12.3 ms (lane 1): 400 processed, 20 duplicates, 1 dead-lettered",
    ),
    (
        events.GroupCommitted(handler="credit", lane=0, processed=0, parked=2, seconds=0.001),
        logging.DEBUG,
        "credit: committed in 1.0 ms (lane 0): 0 processed, 2 parked",
    ),
    (
        events.PartitionTaken(handler="credit", partition=PARTITION, parked=0),
        logging.INFO,
        "credit: took payments[3] over",
    ),
    (
        events.PartitionTaken(handler="credit", partition=PARTITION, parked=12),
        logging.INFO,
        "credit: took payments[3] over; 12 messages are parked there",
    ),
    (
        events.PartitionTaken(handler="credit", partition=PARTITION, parked=1),
        logging.INFO,
        "credit: took payments[3] over; 1 message is parked there",
    ),
    (
        events.PartitionsAssigned(handler="credit", partitions=()),
        logging.INFO,
        (
            "credit: got no partitions: other members of its group have them all; this one takes over when one of them "
            "ends"
        ),
    ),
    (
        events.PartitionsRevoked(handler="credit", partitions=(PARTITION,), dropped=1, lost=False),
        logging.INFO,
        "credit: gave back payments[3]; 1 message left for the next owner",
    ),
    (
        events.PartitionsAwaited(handler="credit", seconds=65.2),
        logging.WARNING,
        (
            "credit: waiting for partitions for 65 s: the group assigns them once their former members have handed "
            "them over, or the broker has missed a dead one"
        ),
    ),
    (
        events.HandlerSummary(
            handler="credit", seconds=60.0, processed=1, duplicates=1, skipped=1, dead=1, rolled_back=2
        ),
        logging.INFO,
        (
            "credit: in 60 s: 1 processed, 1 duplicate, 1 message of an unknown type skipped, 1 dead letter, "
            "2 batches rolled back and run again"
        ),
    ),
    (
        events.Trouble(where="database", error="gone", wait=2.0, work="outbox"),
        logging.WARNING,
        "outbox: database trouble, next try in 2.0 s: gone",
    ),
    (
        events.PartitionInDoubt(handler="credit", partition=PARTITION, error="Fenced: 1 of 2"),
        logging.WARNING,
        (
            "credit: payments[3] may belong to another worker; this one starts no transaction for it until that is "
            "clear: Fenced: 1 of 2"
        ),
    ),
    (
        events.BrakeOn(handler="credit", wait=1.25),
        logging.ERROR,
        "credit: everything fails: no message is dead-lettered; the brake tries one message in 1.2 s",
    ),
    (
        events.BrakeOn(handler="credit", wait=1.25, partition=PARTITION),
        logging.ERROR,
        (
            "credit: messages of payments[3] cannot be read: none of them is dead-lettered; the brake "
            "tries one message in 1.2 s"
        ),
    ),
    (
        events.BrakeOff(handler="credit", partition=PARTITION),
        logging.INFO,
        ("credit: a message of payments[3] succeeded: the brake is off"),
    ),
    (events.BrakeOff(handler="credit"), logging.INFO, "credit: a message succeeded: the brake is off"),
    (
        events.HandlerPaused(handler="credit", error="SessionUnfit: two engines", wait=0.25),
        logging.ERROR,
        "credit: paused, no attempt is counted, next try in 0.2 s: SessionUnfit: two engines",
    ),
    (events.HandlerResumed(handler="credit"), logging.INFO, "credit: works again, not paused any more"),
    (events.MessagesSkipped(handler="credit", count=4), logging.DEBUG, "credit: 4 messages of unknown types skipped"),
    (
        events.GroupRolledBack(handler="credit", size=100, handled=40, error="ValueError"),
        logging.DEBUG,
        "credit: rolled back 100 messages, 40 of them handled; they run again: ValueError",
    ),
    (
        events.MessageSuspected(
            handler="credit", partition=PARTITION, offset=7, message_id="p-1", error="Timeout", wait=1.5
        ),
        logging.WARNING,
        (
            "credit: p-1 at payments[3]@7 failed alone; no attempt is counted until another message has run, "
            "because others may fail in the same way; next try in 1.5 s: Timeout"
        ),
    ),
    (
        events.AttemptFailed(
            handler="credit", partition=PARTITION, offset=7, message_id="p-1", attempt=2, error="Timeout", wait=1.5
        ),
        logging.WARNING,
        "credit: attempt 2 of p-1 at payments[3]@7 failed, next try in 1.5 s: Timeout",
    ),
    (
        events.MessageDeadLettered(
            handler="credit", partition=PARTITION, offset=7, message_id="", reason=Reason.UNIDENTIFIED, error="no id"
        ),
        logging.ERROR,
        "credit: a message without an ID at payments[3]@7 is a dead letter (unidentified): no id",
    ),
    (
        events.MessageDeadLettered(
            handler="credit",
            partition=PARTITION,
            offset=7,
            message_id="p-1",
            reason=Reason.EXHAUSTED,
            error="KeyError",
            letter=12,
            attempts=5,
            summary="KeyError at shop/worker.py:31 in handle",
            in_full="KeyError: 'iban'",
        ),
        logging.ERROR,
        (
            "credit: p-1 at payments[3]@7 is a dead letter (exhausted after 5 attempts): "
            "KeyError at shop/worker.py:31 in handle; see `consumerkit dead-letters show 12`"
        ),
    ),
    (
        events.OriginClash(
            handler="credit", partition=PARTITION, offset=7, message_id="p-1", table="dead_letters", row=12
        ),
        logging.ERROR,
        (
            "credit: p-1 at payments[3]@7: row 12 of dead_letters has the same place and another message, so "
            "this message gets a row of its own; check that row: an import may have written it"
        ),
    ),
    (
        events.Trouble(where="database", error="connection refused", wait=2.0),
        logging.WARNING,
        "database trouble, next try in 2.0 s: connection refused",
    ),
    (events.TroubleOver(where="database", seconds=9.0), logging.INFO, "database works again after 9.0 s"),
    (
        events.PositionDiffers(handler="credit", partition=PARTITION, offset=5, lost=False, remark="somebody moved it"),
        logging.WARNING,
        "credit: somebody moved it",
    ),
    (
        events.PositionDiffers(handler="credit", partition=PARTITION, offset=5, lost=True, remark="commits are lost"),
        logging.ERROR,
        "credit: commits are lost",
    ),
    (
        events.CommitsLost(handler="credit", error="the database has lost transactions"),
        logging.ERROR,
        (
            "credit: the database has lost transactions; every partition goes back to its mark, and the messages "
            "above it run again"
        ),
    ),
    (
        events.HandlerStopped(handler="credit", error="no table accounts"),
        logging.CRITICAL,
        "credit: stopped for good: no table accounts; repair the cause and restart the worker",
    ),
    (
        events.OffsetsCommitted(handler="credit", positions=((PARTITION, 8),)),
        logging.DEBUG,
        "credit: offsets committed: payments[3]@8",
    ),
    (events.OutboxPublished(count=3), logging.DEBUG, "outbox: 3 messages published"),
    (
        events.OutboxHeldBack(topic="receipts", error="no topic", wait=5.0, way_out="make it"),
        logging.WARNING,
        "outbox: all that is for receipts is held back; next try in 5.0 s, then less often: no topic; make it",
    ),
    (
        events.OutboxHeldBack(topic="receipts", sequence=7, error="too large", wait=1.0),
        logging.WARNING,
        "outbox: message 7 for receipts is held back; next try in 1.0 s, then less often: too large",
    ),
    (
        events.OutboxOld(topic="receipts", sequence=7, since=datetime(2026, 11, 1, tzinfo=UTC)),
        logging.WARNING,
        "outbox: message 7 for receipts has waited since 2026-11-01 00:00:00+00:00; see `consumerkit outbox list`",
    ),
    (
        events.OutboxGivenUp(topic="receipts", count=2, oldest=datetime(2026, 11, 1, tzinfo=UTC)),
        logging.ERROR,
        (
            "outbox: gave up 2 messages for receipts, the oldest written at 2026-11-01 00:00:00+00:00: "
            "payload_retention ended their wait; operator_actions names them, and a process that died may have "
            "sent some"
        ),
    ),
    (
        events.UndecidedPayloadsErased(handler="credit", count=2),
        logging.WARNING,
        (
            "credit: erased the payloads of 2 undecided dead letters; they can no longer be redriven; resolve or "
            "discard them"
        ),
    ),
    (
        events.OutboxResumed(topic="receipts", seconds=61.0),
        logging.INFO,
        "outbox: all that is for receipts is no longer held back, after 61.0 s",
    ),
    (
        events.OutboxTurnAwaited(holder="the server's process 7", seconds=15.0),
        logging.WARNING,
        (
            "outbox: another process has held the relay's turn for 15 s without a sign of life: the server's "
            "process 7; end that process"
        ),
    ),
    (
        events.OutboxTurnCame(seconds=20.0),
        logging.INFO,
        "outbox: the silent process no longer holds the relay's turn, after 20 s",
    ),
    (
        events.DeadLetterByReference(topic="receipts.dlq", sequence=7),
        logging.WARNING,
        (
            "outbox: dead letter 7 was too large for receipts.dlq and was sent without its value; the table "
            "holds it; raise the topic's `max.message.bytes` to send the next ones whole"
        ),
    ),
    (
        events.PartitionStandsStill(
            handler="credit", partition=PARTITION, offset=7, end=30, seconds=121.0, reason="the brake is on; repair it"
        ),
        logging.WARNING,
        ("credit: payments[3] has stood at offset 7 for 121 s, and its log ends at 30: the brake is on; repair it"),
    ),
    (
        events.PartitionMoves(handler="credit", partition=PARTITION),
        logging.INFO,
        "credit: payments[3] moves again",
    ),
    (
        events.FenceAwaited(handler="credit", partition=PARTITION, seconds=5.2),
        logging.WARNING,
        (
            "credit: payments[3] cannot be taken over for 5 s: a transaction of its former owner is still open; "
            "end the worker that hangs, or wait until the server ends the transaction after transaction_timeout"
        ),
    ),
    (
        events.StepsRun(handler="credit", called=3, reused=2, failed=1, seconds=0.25),
        logging.DEBUG,
        "credit: steps: 3 called, 2 done before, 1 failed, in 0.250 s",
    ),
    (
        events.StepAwaited(handler="credit", partition=PARTITION, offset=7, message_id="p-1", step="charge", wait=4.5),
        logging.WARNING,
        (
            "credit: p-1 at payments[3]@7: step charge has begun in another worker or before a crash; the "
            "message is parked until the step's deadline, in 4.5 s"
        ),
    ),
    (
        events.OutsideWaitNoticed(handler="credit", place="shop/mail.py:31 in Mail.handle", seconds=0.0123),
        logging.WARNING,
        (
            "credit: the handler waited 0.012 s for something other than its session at shop/mail.py:31 in "
            "Mail.handle; from now on each message has a transaction of its own, since a failure of another message in "
            "the same one would repeat what was done outside the database; do that in a step, or set "
            "shares_transaction = True where it is harmless"
        ),
    ),
    (
        events.StepDoubted(
            handler="credit", partition=PARTITION, offset=7, message_id="p-1", step="charge", calls=2, then="asked"
        ),
        logging.WARNING,
        (
            "credit: p-1 at payments[3]@7: step charge may have happened, and its result was not kept; it was "
            "begun 2 times, and now it is asked"
        ),
    ),
    (
        events.StepAwaited(
            handler="credit", partition=PARTITION, offset=7, message_id="p-1", step="charge", wait=4.5, undoing=True
        ),
        logging.WARNING,
        (
            "credit: p-1 at payments[3]@7: step charge must be undone before it is called again; the message is "
            "parked until then"
        ),
    ),
    (
        events.StepUndone(handler="credit", message_id="p-1", step="charge", letter=4, called=True),
        logging.INFO,
        "credit: p-1: step charge is undone; its message is dead: dead letter 4",
    ),
    (
        events.StepUndone(handler="credit", message_id="p-1", step="charge", letter=None, called=False),
        logging.INFO,
        "credit: p-1: step charge is not undone: the other side says it never happened; its message is dead",
    ),
    (
        events.StepUndoFailed(
            handler="credit", message_id="p-1", step="charge", attempt=2, error="Timeout", wait=1.5, letter=None
        ),
        logging.WARNING,
        "credit: p-1: the undo of step charge failed, attempt 2, next try in 1.5 s: Timeout",
    ),
    (
        events.StepUndoFailed(
            handler="credit", message_id="p-1", step="charge", attempt=3, error="Timeout", wait=None, letter=5
        ),
        logging.ERROR,
        (
            "credit: p-1: the undo of step charge failed, attempt 3, the last one: the step's effect stands; "
            "dead letter 5: Timeout"
        ),
    ),
    (
        events.PartitionPaused(handler="credit", partition=PARTITION, reason="its lot is full; repair it"),
        logging.WARNING,
        "credit: payments[3] is paused: its lot is full; repair it",
    ),
    (
        events.PartitionResumed(handler="credit", partition=PARTITION),
        logging.INFO,
        "credit: payments[3] is not paused any more",
    ),
    (
        events.RequestAnswered(
            handler="http:shop", endpoint="place", outcome="replayed", status=201, seconds=0.0312, waited=0.03
        ),
        logging.DEBUG,
        "http:shop: place: answered with 201 in 31.2 ms, 30 ms of them waiting: answered again as before",
    ),
    (
        events.RequestAnswered(handler="http:shop", endpoint="place", outcome="failed", status=None, seconds=0.002),
        logging.WARNING,
        "http:shop: place: failed in 2.0 ms; it is rolled back, and its key is free",
    ),
    (
        events.RequestAnswered(
            handler="http:shop",
            endpoint="place",
            outcome="out_of_reach",
            status=503,
            seconds=0.5,
            error="OperationalError",
        ),
        logging.ERROR,
        "http:shop: place: answered with 503 in 500.0 ms: the database failed: OperationalError",
    ),
    (
        events.MessagesForgotten(handler="credit", count=12, before=datetime(2026, 5, 1, 12, tzinfo=UTC)),
        logging.INFO,
        "credit: the ledger forgot 12 message IDs processed before 2026-05-01 12:00:00+00:00",
    ),
    (
        events.PayloadsErased(handler="credit", count=12),
        logging.INFO,
        "credit: erased the payloads of 12 dead letters decided long ago",
    ),
    (
        events.DeadLetterHookFailed(
            handler="credit", letter=7, message_id="pay-1", attempt=2, error="KeyError", wait=4.0
        ),
        logging.ERROR,
        "credit: pay-1: on_dead_letter failed for dead letter 7, attempt 2, next try in 4.0 s: KeyError",
    ),
    (
        events.DeadLetterHookFailed(
            handler="credit", letter=7, message_id="pay-1", attempt=10, error="KeyError", wait=None
        ),
        logging.ERROR,
        (
            "credit: pay-1: on_dead_letter failed for dead letter 7, attempt 10, the last one; the dead letter's "
            "history has it: KeyError"
        ),
    ),
    (
        events.RowsLeftBehind(handler="credit", what="undos", topic="", count=1, reason="1 step waits; do this"),
        logging.WARNING,
        "credit: 1 step waits; do this",
    ),
    (
        events.ForgettingHeldBack(handler="credit", partition=PARTITION, since=datetime(2026, 5, 1, tzinfo=UTC)),
        logging.WARNING,
        (
            "credit: payments[3] has not moved, so the ledger keeps every message ID processed since then "
            "(2026-05-01 00:00:00+00:00); let the handler catch up, or move its position with consumerkit skip"
        ),
    ),
]


@pytest.mark.parametrize("event, level, line", TOLD, ids=lambda value: type(value).__name__)
def test_each_event_is_one_line_at_its_level(
    event: Event, level: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "consumerkit")

    LoggingObserver()(event)

    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(level, line)]


def test_no_event_is_forgotten() -> None:
    known = {
        kind for _, kind in inspect.getmembers(events, inspect.isclass) if issubclass(kind, Event) and kind is not Event
    }
    assert known == {type(event) for event, _, _ in TOLD}


def _record(event: Event, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    caplog.set_level(logging.DEBUG, "consumerkit")
    LoggingObserver()(event)
    return caplog.records[-1]


def test_json_lines_carry_the_event_fields(caplog: pytest.LogCaptureFixture) -> None:
    record = _record(
        events.AttemptFailed(
            handler="credit", partition=PARTITION, offset=7, message_id="p-1", attempt=2, error="Timeout", wait=1
        ),
        caplog,
    )

    told: dict[str, Any] = json.loads(JsonFormatter().format(record))

    timestamp, process = told.pop("timestamp"), told.pop("process.pid")
    assert (timestamp[-6:], process) == ("+00:00", os.getpid())
    assert told == {
        "severity_text": "WARNING",
        "severity_number": 13,
        "scope": "consumerkit",
        "body": record.getMessage(),
        "event.name": "consumerkit.AttemptFailed",
        "consumerkit.handler": "credit",
        "messaging.destination.name": "payments",
        "messaging.destination.partition.id": "3",
        "kafka.offset": 7,
        "messaging.message.id": "p-1",
        "consumerkit.attempt": 2,
        "consumerkit.error": "Timeout",
        "consumerkit.wait": 1,
        "consumerkit.braking": False,
    }


@pytest.mark.parametrize("event, level, line", TOLD, ids=lambda value: type(value).__name__)
def test_every_event_can_be_written_as_json(
    event: Event, level: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = json.loads(JsonFormatter().format(_record(event, caplog)))
    assert (told["severity_text"], told["body"]) == (logging.getLevelName(level), line)
    assert told["event.name"] == f"consumerkit.{type(event).__name__}"


def test_a_producers_message_id_can_forge_no_line(caplog: pytest.LogCaptureFixture) -> None:
    forged = "p-1\n2026-01-01 CRITICAL \x1b[2J\ud800"
    record = _record(
        events.MessageDeadLettered(
            handler="credit", partition=PARTITION, offset=7, message_id=forged, reason=Reason.REJECTED, error="no"
        ),
        caplog,
    )

    text, as_json = TextFormatter().format(record), JsonFormatter().format(record)

    assert r"p-1\n2026-01-01 CRITICAL \x1b[2J\ud800" in text
    assert "\n" not in text
    assert "\n" not in as_json
    assert "\x1b" not in as_json


def test_a_traceback_follows_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure("text", "info")
        try:
            raise ValueError("bad\x1b[2J")
        except ValueError:
            logging.getLogger("shop").exception("broke")
        written = capsys.readouterr().err
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)

    assert "ERROR" in written.splitlines()[0]
    assert written.splitlines()[-1] == r"ValueError: bad\x1b[2J"
