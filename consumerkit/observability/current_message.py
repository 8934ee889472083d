"""The message that is being handled, as fields for any logging: plain logging, structlog, and our own lines.

The names are OpenTelemetry's, so that a log line and a span are found by the same words.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextvars import Context, ContextVar
from typing import Any, Final, NamedTuple

from consumerkit.message import Message
from consumerkit.observability import conventions


class _Current(NamedTuple):
    handler: str
    message: Message
    message_id: str
    attempt: int


_current: Final[ContextVar[_Current | None]] = ContextVar("consumerkit_message", default=None)


def enter(surroundings: Context, handler: str, message: Message, message_id: str, attempt: int) -> None:
    """Set the message that code in `surroundings` is handling, or that a log line is about."""
    surroundings.run(_current.set, _Current(handler, message, message_id, attempt))


def message_fields() -> dict[str, Any]:
    """Return the fields of the message that is being handled, and of the current span; empty outside a handler.

    An observer that gets an event about a message has that message's fields and span.

    Example:
        >>> message_fields()
        {}
    """
    found: dict[str, Any] = {}
    if (current := _current.get()) is not None:
        message = current.message
        found = {
            conventions.HANDLER: current.handler,
            conventions.DESTINATION: message.topic,
            conventions.PARTITION: str(message.partition),
            conventions.OFFSET: message.offset,
        }
        if current.message_id:
            found[conventions.MESSAGE_ID] = current.message_id
        if current.attempt:
            found[conventions.ATTEMPT] = current.attempt
    return found | _span()


def add_message_fields(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add `message_fields` to one of structlog's lines; a processor. The line's own fields stay.

    Example:
        structlog.configure(processors=[add_message_fields, structlog.processors.JSONRenderer()])
    """
    for name, value in message_fields().items():
        event.setdefault(name, value)
    return event


class MessageFields(logging.Filter):
    """Adds `message_fields` to each record that passes; a filter for a handler of plain logging.

    Names with dots become attributes of the record. Formatters that write all attributes as JSON
    include them.

    Example:
        handler.addFilter(MessageFields())
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; every record passes."""
        for name, value in message_fields().items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def _span() -> dict[str, str]:
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

    context = get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}
