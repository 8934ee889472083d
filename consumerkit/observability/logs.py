"""Events as log lines, and the logging of the command line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Literal

from typing_extensions import override

from consumerkit import events
from consumerkit.events import Event
from consumerkit.message import TopicPartition
from consumerkit.observability.printable import printable, printable_lines
from consumerkit.observability.words import counted
from consumerkit.outcome import Reason
from consumerkit.redaction.database_words import without_values
from consumerkit.redaction.text import redact
from consumerkit.redaction.variables import without_variables

Format = Literal["text", "json"]
_Level = int | Callable[[Any], int]
_FIELDS = "consumerkit_fields"


class LoggingObserver:
    """Tells each event to the standard library's logging, as one line at the level that fits.

    What goes well and often (transactions, offsets, the outbox) is DEBUG, what happens now and then is INFO, what is
    tried again by itself is WARNING, and what a person should look at is ERROR or CRITICAL. A record's message is the
    sentence; the event's fields travel beside it, and `JsonFormatter` writes them out.

    Args:
        logger: Where to; `consumerkit` by default.

    Example:
        >>> observer = LoggingObserver()
        >>> observer(events.OutboxPublished(count=3))
    """

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("consumerkit")

    def __call__(self, event: Event) -> None:
        """Log one event."""
        level, tell = _LINES.get(type(event), (logging.INFO, repr))
        number = level if isinstance(level, int) else level(event)
        if self._logger.isEnabledFor(number):
            sentence = printable(f"{event.handler}: {tell(event)}" if event.handler else tell(event))
            # A record's `stack_info` is what every formatter writes on lines of its own.
            in_full = getattr(event, "in_full", "") or None
            fields = {_FIELDS: event_fields(event)}
            logger = self._logger
            logger.handle(
                logger.makeRecord(logger.name, number, __file__, 0, "%s", (sentence,), None, None, fields, in_full)
            )


def event_fields(event: Event) -> dict[str, Any]:
    """Return an event's fields as JSON takes them; `topic`, `partition` and `offset` each by themselves.

    Example:
        >>> event_fields(events.PartitionStopped(handler="a", partition=TopicPartition("t", 3), error="gone"))
        {'event': 'PartitionStopped', 'handler': 'a', 'topic': 't', 'partition': 3, 'error': 'gone'}
    """
    told: dict[str, Any] = {"event": type(event).__name__}
    for field in fields(event):
        value = getattr(event, field.name)
        if isinstance(value, TopicPartition):
            told.update(topic=value.topic, partition=value.partition)
        elif field.name == "partitions":
            told["partitions"] = [str(partition) for partition in value]
        elif field.name == "positions":
            told["positions"] = {str(partition): offset for partition, offset in value}
        elif field.name == "in_full":
            continue  # it goes with the record itself, as its `stack_info`
        elif field.name != "handler" or value:
            told[field.name] = value
    return told


def _names(partitions: tuple[TopicPartition, ...]) -> str:
    return ", ".join(map(str, sorted(partitions))) or "no partitions"


def _committed(event: events.GroupCommitted) -> str:
    parts = [f"{event.processed} processed"]
    parts += [f"{event.duplicates} duplicates"] if event.duplicates else []
    parts += [f"{event.duplicates_of_dead} duplicates of dead letters"] if event.duplicates_of_dead else []
    parts += [f"{event.dead} dead-lettered"] if event.dead else []
    parts += [f"{event.parked} parked"] if event.parked else []
    parts += [f"{event.fallback_ids} identified by a fallback"] if event.fallback_ids else []
    parts += [f"{event.unreadable_times} without a readable time"] if event.unreadable_times else []
    return f"committed in {event.seconds * 1000:.1f} ms (lane {event.lane}): {', '.join(parts)}"


def _revoked(event: events.PartitionsRevoked) -> str:
    dropped = f"; {event.dropped} messages left for the next owner" if event.dropped else ""
    return f"{'lost' if event.lost else 'gave back'} {_names(event.partitions)}{dropped}"


def _taken(event: events.PartitionTaken) -> str:
    return f"took {event.partition} over" + (f"; {event.parked} messages are parked there" if event.parked else "")


def _stands_still(event: events.PartitionStandsStill) -> str:
    end = "" if event.end is None else f", and its log ends at {event.end}"
    return f"{event.partition} has stood at offset {event.offset} for {event.seconds:.0f} s{end}: {event.reason}"


def _failed(event: events.AttemptFailed) -> str:
    at_least = "at least " if event.braking else ""
    what_next = "no further attempt" if event.wait is None else f"again in {at_least}{event.wait:.1f} s"
    return (
        f"attempt {event.attempt} of {event.message_id} at {event.partition}@{event.offset} failed, {what_next}: "
        f"{event.error}"
    )


def _suspected(event: events.MessageSuspected) -> str:
    return (
        f"{event.message_id} at {event.partition}@{event.offset} failed alone, which is not counted before another "
        f"message has run, because others may fail in the same way; again in {event.wait:.1f} s: {event.error}"
    )


def _brake(event: events.BrakeOn) -> str:
    what = "everything fails" if event.partition is None else f"messages of {event.partition} cannot be read"
    more = "nothing more" if event.partition is None else "nothing more of it"
    return f"{what}: {more} is dead-lettered, one message is tried in {event.wait:.1f} s"


def _offsets(event: events.OffsetsCommitted) -> str:
    return f"offsets committed: {', '.join(f'{partition}@{offset}' for partition, offset in event.positions)}"


def _dead(event: events.MessageDeadLettered) -> str:
    name = event.message_id or "a message without an ID"
    after = f" after {counted(event.attempts, 'attempt')}" if event.reason is Reason.EXHAUSTED else ""
    show = "" if event.letter is None else f"; see `consumerkit dead-letters show {event.letter}`"
    return (
        f"{name} at {event.partition}@{event.offset} is a dead letter ({event.reason.value}{after}): "
        f"{event.summary or event.error}{show}"
    )


def _clash(event: events.OriginClash) -> str:
    name = event.message_id or "a message without an ID"
    return (
        f"{name} at {event.partition}@{event.offset}: row {event.row} of {event.table} names the same place and is "
        "another message, so this one has a row beside it; look at that row, which an import may have put there"
    )


def _forgotten(event: events.MessagesForgotten) -> str:
    return f"the ledger forgot {event.count} message IDs processed before {event.before.isoformat(' ', 'seconds')}"


def _held_back(event: events.ForgettingHeldBack) -> str:
    since = "nothing of it is settled" if event.since is None else event.since.isoformat(" ", "seconds")
    return (
        f"{event.partition} has not moved, so the ledger keeps what was processed since then ({since}); "
        "have its messages processed, or move its position"
    )


def _what_of(event: events.OutboxHeldBack | events.OutboxResumed) -> str:
    return "what is for" if event.sequence is None else f"message {event.sequence} for"


def _outbox_held_back(event: events.OutboxHeldBack) -> str:
    way_out = f"; {event.way_out}" if event.way_out else ""
    return (
        f"outbox: {_what_of(event)} {event.topic} is held back, and tried again in {event.wait:.1f} s and then less "
        f"often: {event.error}{way_out}"
    )


_LINES: Mapping[type[Event], tuple[_Level, Callable[[Any], str]]] = {
    events.WorkerStarted: (logging.INFO, lambda e: f"worker started: {', '.join(e.handlers)}"),
    events.WorkerStopped: (logging.INFO, lambda e: f"worker stopped in {e.seconds:.1f} s"),
    events.PartitionsAssigned: (logging.INFO, lambda e: f"got {_names(e.partitions)}"),
    events.PartitionsRevoked: (lambda e: logging.WARNING if e.lost else logging.INFO, _revoked),
    events.PartitionStopped: (logging.ERROR, lambda e: f"{e.partition} is not read any further: {e.error}"),
    events.PartitionStandsStill: (logging.WARNING, _stands_still),
    events.PartitionPaused: (logging.WARNING, lambda e: f"{e.partition} is paused: {e.reason}"),
    events.PartitionResumed: (logging.INFO, lambda e: f"{e.partition} is not paused any more"),
    events.PartitionMoves: (logging.INFO, lambda e: f"{e.partition} moves again"),
    events.PartitionTaken: (logging.INFO, _taken),
    events.FenceAwaited: (
        logging.WARNING,
        lambda e: (
            f"{e.partition} cannot be taken over for {e.seconds:.0f} s now: a transaction of its owner before is still "
            "open; end the worker that hangs, or wait until the server ends it after transaction_timeout"
        ),
    ),
    events.PartitionInDoubt: (
        logging.WARNING,
        lambda e: f"{e.partition} may be another worker's, nothing of it begins until that is clear: {e.error}",
    ),
    events.PositionDiffers: (lambda e: logging.ERROR if e.lost else logging.WARNING, lambda e: e.remark),
    events.CommitsLost: (
        logging.ERROR,
        lambda e: f"{e.error}; going back to what it has, and running again whatever is above it",
    ),
    events.GroupCommitted: (logging.DEBUG, _committed),
    events.MessagesSkipped: (logging.DEBUG, lambda e: f"{e.count} messages of unknown types skipped"),
    events.GroupRolledBack: (
        logging.DEBUG,
        lambda e: f"rolled back {e.size} messages, {e.handled} of them handled, to run them again: {e.error}",
    ),
    # Where it is the last one, the line about the dead letter follows, and says as much.
    events.AttemptFailed: (lambda e: logging.DEBUG if e.wait is None else logging.WARNING, _failed),
    events.MessageSuspected: (logging.WARNING, _suspected),
    events.MessageDeadLettered: (logging.ERROR, _dead),
    events.OriginClash: (logging.ERROR, _clash),
    events.Trouble: (logging.WARNING, lambda e: f"{e.where} trouble, again in {e.wait:.1f} s: {e.error}"),
    events.TroubleOver: (logging.INFO, lambda e: f"{e.where} works again after {e.seconds:.1f} s"),
    events.BrakeOn: (logging.ERROR, _brake),
    events.BrakeOff: (
        logging.INFO,
        lambda e: f"a message{'' if e.partition is None else f' of {e.partition}'} succeeded, going on",
    ),
    events.HandlerPaused: (
        logging.ERROR,
        lambda e: f"paused, nothing is counted against a message, again in {e.wait:.1f} s: {e.error}",
    ),
    events.HandlerResumed: (logging.INFO, lambda e: "not paused any more, going on"),
    events.HandlerStopped: (
        logging.CRITICAL,
        lambda e: f"stopped, since trying again would not help: {e.error}; repair it and start the worker again",
    ),
    events.OffsetsCommitted: (logging.DEBUG, _offsets),
    events.OutboxPublished: (logging.DEBUG, lambda e: f"outbox: {e.count} messages published"),
    events.OutboxHeldBack: (logging.WARNING, _outbox_held_back),
    events.OutboxOld: (
        logging.WARNING,
        lambda e: (
            f"outbox: message {e.sequence} for {e.topic} waits since {e.since.isoformat(' ', 'seconds')}; "
            "see `consumerkit outbox list`"
        ),
    ),
    events.OutboxGivenUp: (
        logging.ERROR,
        lambda e: (
            f"outbox: gave up {e.count} messages for {e.topic}, the oldest of {e.oldest.isoformat(' ', 'seconds')}, "
            "which payload_retention lets wait no longer; operator_actions names them, and a process that died may "
            "have published some"
        ),
    ),
    events.OutboxResumed: (
        logging.INFO,
        lambda e: f"outbox: {_what_of(e)} {e.topic} is not held back any more, after {e.seconds:.1f} s",
    ),
    events.OutboxTurnAwaited: (
        logging.WARNING,
        lambda e: (
            f"outbox: another process has the relay's turn for {e.seconds:.0f} s and shows no sign of life: "
            f"{e.holder}; end that process"
        ),
    ),
    events.OutboxTurnCame: (
        logging.INFO,
        lambda e: f"outbox: the relay's turn is not held by a silent process any more, after {e.seconds:.0f} s",
    ),
    events.DeadLetterByReference: (
        logging.WARNING,
        lambda e: (
            f"outbox: dead letter {e.sequence} was too large for {e.topic} and went without its value, which the table "
            "holds; raise the topic's `max.message.bytes` to have the next ones whole"
        ),
    ),
    events.MessagesForgotten: (logging.INFO, _forgotten),
    events.PayloadsErased: (logging.INFO, lambda e: f"erased the payloads of {e.count} dead letters decided long ago"),
    events.UndecidedPayloadsErased: (
        logging.WARNING,
        lambda e: (
            f"erased the payloads of {e.count} undecided dead letters; they can be resolved or "
            "discarded, and not redriven any more"
        ),
    ),
    events.ForgettingHeldBack: (logging.WARNING, _held_back),
}


class TextFormatter(logging.Formatter):
    """One line per record: time, level, process, sentence; a traceback follows on lines of its own."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:<8} [{record.process}] {printable(_message(record))}"
        parts = (_traceback(self, record), _indented(record.stack_info))
        return "\n".join([line, *(printable_lines(part) for part in parts if part)])


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, process, message, and an event's fields."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": _message(record),
            **getattr(record, _FIELDS, {}),
        }
        stack = _traceback(self, record)
        if stack:
            told["traceback"] = stack
        if record.stack_info:
            told["error_in_full"] = record.stack_info
        return json.dumps(told, default=str)


def _indented(text: str | None) -> str:
    return "\n".join(f"    {line}" for line in (text or "").splitlines())


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if not record.exc_info:
        return ""
    stack = formatter.formatException(record.exc_info)
    error = record.exc_info[1]
    return redact(without_variables(stack if error is None else without_values(stack, error)))


def _message(record: logging.LogRecord) -> str:
    """Return a record's sentence; what other libraries say is not known to be without secrets."""
    text = record.getMessage()
    return text if record.name.partition(".")[0] == "consumerkit" else redact(text)


def configure(format: Format = "text", level: str = "INFO") -> None:
    """Send all logging to standard error, as text or as JSON lines; for the command line, never for a library's user.

    Clients that tell of every step at INFO are heard from WARNING on. A target that configures logging itself, while it
    is being loaded, has the last word.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("aiokafka", "aiosqlite", "alembic", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
