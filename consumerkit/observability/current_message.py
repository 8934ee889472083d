"""The message that is being handled, as fields for whatever logs: plain logging, structlog, and our own lines.

The names are OpenTelemetry's, so that a log line is found by the same words as a span.
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
    """Have what runs in `surroundings` know which message it handles."""
    surroundings.run(_current.set, _Current(handler, message, message_id, attempt))


def message_fields() -> dict[str, Any]:
    """Return what tells the message that is being handled, and the current span; empty outside of a handler.

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
            conventions.MESSAGE_ID: current.message_id,
            conventions.ATTEMPT: current.attempt,
        }
    return found | _span()


def add_message_fields(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add `message_fields` to a line of structlog's; a processor. What the line has itself stays.

    Example:
        structlog.configure(processors=[add_message_fields, structlog.processors.JSONRenderer()])
    """
    for name, value in message_fields().items():
        event.setdefault(name, value)
    return event


class MessageFields(logging.Filter):
    """Adds `message_fields` to each record that passes; a filter for a handler of plain logging.

    Names with dots are attributes of the record, which formatters that write all attributes as JSON take as they are.

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
