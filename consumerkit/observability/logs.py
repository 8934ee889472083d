"""Events as log lines, and the logging of the command line."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final, Literal

from typing_extensions import override

from consumerkit.events import Event, Stages
from consumerkit.message import TopicPartition
from consumerkit.observability import conventions
from consumerkit.observability.current_message import message_fields
from consumerkit.observability.printable import printable, printable_lines
from consumerkit.observability.repetitions import Repetitions, without_rebalances
from consumerkit.observability.sentences import LINES as _LINES
from consumerkit.redaction.database_words import without_values
from consumerkit.redaction.text import redact
from consumerkit.redaction.variables import without_variables

Format = Literal["text", "json"]
_FIELDS = "consumerkit_fields"


class LoggingObserver:
    """Logs each event with the standard library's logging, as one line at the fitting level.

    Frequent successes (transactions, offsets, the outbox) are DEBUG, occasional events are INFO,
    failures that are retried automatically are WARNING, and events that need a person are ERROR or
    CRITICAL. A record's message is the sentence; the event's fields come with it, and
    `JsonFormatter` writes them.

    Args:
        logger: The target logger; `consumerkit` by default.

    Example:
        >>> from consumerkit import events
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
            # Every formatter writes a record's `stack_info` on lines of its own.
            in_full = getattr(event, "in_full", "") or None
            fields = {_FIELDS: event_fields(event)}
            logger = self._logger
            logger.handle(
                logger.makeRecord(logger.name, number, __file__, 0, "%s", (sentence,), None, None, fields, in_full)
            )


def event_fields(event: Event) -> dict[str, Any]:
    """Return an event's fields as JSON values; `topic`, `partition` and `offset` are separate fields.

    Example:
        >>> from consumerkit import events
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
        elif isinstance(value, Stages):
            told["stages"] = value._asdict()
        elif field.name == "positions":
            told["positions"] = {str(partition): offset for partition, offset in value}
        elif field.name == "in_full":
            continue  # the record itself has it, as its `stack_info`
        elif field.name != "handler" or value:
            told[field.name] = value
    return told


class TextFormatter(logging.Formatter):
    """One line per record: time, level, process, sentence; a traceback follows on lines of its own."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:<8} [{record.process}] {printable(_message(record))}"
        parts = (_traceback(self, record), _indented(record.stack_info))
        return "\n".join([line, *(printable_lines(part) for part in parts if part)])


class JsonFormatter(logging.Formatter):
    """One JSON object per line, with OpenTelemetry's names for log records and attributes.

    A line has the fields of an event, and of the message that is being handled when the line is
    logged.

    Example:
        handler.setFormatter(JsonFormatter())
    """

    @override
    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "timestamp": _time(record),
            "severity_text": record.levelname,
            "severity_number": _severity(record.levelno),
            "scope": record.name,
            "process.pid": record.process,
            "body": _message(record),
            **message_fields(),
            **{_key(name): _value(name, value) for name, value in getattr(record, _FIELDS, {}).items()},
        }
        stack = _traceback(self, record)
        if stack:
            told[conventions.EXCEPTION_STACK] = stack
        if record.stack_info:
            told["consumerkit.error_in_full"] = record.stack_info
        return json.dumps(told, default=str)


_KEYS: Final = {
    "event": conventions.EVENT,
    "handler": conventions.HANDLER,
    "topic": conventions.DESTINATION,
    "partition": conventions.PARTITION,
    "offset": conventions.OFFSET,
    "message_id": conventions.MESSAGE_ID,
    "attempt": conventions.ATTEMPT,
}


def _key(name: str) -> str:
    return _KEYS.get(name) or f"consumerkit.{name}"


def _value(name: str, value: Any) -> Any:
    if name == "event":
        return f"consumerkit.{value}"
    return str(value) if name == "partition" else value


def _severity(level: int) -> int:
    """Return OpenTelemetry's number of a level: DEBUG 5, INFO 9, WARN 13, ERROR 17, FATAL 21.

    Example:
        >>> [_severity(level) for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL)]
        [5, 9, 13, 21]
    """
    return min(21, max(1, level // 10 * 4 + 1))


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
    """Return a record's sentence, redacted if it comes from another library: it may contain secrets."""
    text = record.getMessage()
    return text if record.name.partition(".")[0] == "consumerkit" else redact(text)


def configure(format: Format = "text", level: str = "INFO") -> None:
    """Send all logging to standard error, as text or as JSON lines; for the command line, never for a library's user.

    Clients that log every step at INFO are shown from WARNING on. A target that configures logging
    while it is loaded takes precedence.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(without_rebalances)
    handler.addFilter(Repetitions("aiokafka"))
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("aiokafka", "aiosqlite", "alembic", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
