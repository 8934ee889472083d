"""Spans of messages that the relay sends: each below the context in its headers, which is its writer's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from consumerkit.message import Headers
from consumerkit.observability import conventions
from consumerkit.observability.propagation import extracted

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer


class Outgoing(Protocol):
    """The part of a message to send that its span needs."""

    @property
    def topic(self) -> str:
        """The topic that it goes to."""
        ...

    @property
    def headers(self) -> Headers:
        """Its headers."""
        ...


class Sends(Protocol):
    """The spans of messages that are sent together."""

    def refused(self, place: int, code: str) -> None:
        """Mark the span of the message at this place as failed: the broker refused it."""


class _NoSends:
    """Traces nothing."""

    def refused(self, place: int, code: str) -> None:
        pass


NO_SENDS: Final[Sends] = _NoSends()


@contextmanager
def sending(tracer: Tracer, messages: Sequence[Outgoing], id_header: str) -> Iterator[Sends]:
    """Begin a span for each message, and end them when the block ends.

    The headers are sent unchanged: the receiver continues the same trace, below the writer's span.

    Args:
        tracer: Makes the spans.
        messages: The messages.
        id_header: The header with the message ID.
    """
    sends = _Sends([_begun(tracer, message, id_header) for message in messages])
    try:
        yield sends
    except BaseException as error:
        for span in sends.spans:
            fail(span, type(error).__qualname__)
        raise
    finally:
        for span in sends.spans:
            span.end()


class _Sends:
    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans

    def refused(self, place: int, code: str) -> None:
        fail(self.spans[place], code)


def fail(span: Span, kind: str) -> None:
    """Mark a span as failed with the error's class or code only: its text may quote a payload."""
    from opentelemetry.trace import StatusCode

    span.set_attribute(conventions.ERROR_TYPE, kind)
    span.set_status(StatusCode.ERROR)


def _begun(tracer: Tracer, message: Outgoing, id_header: str) -> Span:
    from opentelemetry.trace import SpanKind

    attributes: dict[str, Any] = {
        conventions.SYSTEM: conventions.KAFKA,
        conventions.OPERATION_NAME: conventions.SEND,
        conventions.OPERATION_TYPE: conventions.SEND,
        conventions.DESTINATION: message.topic,
    }
    message_id = next((value for name, value in message.headers if name == id_header and value is not None), None)
    if message_id is not None:
        attributes[conventions.MESSAGE_ID] = message_id.decode("utf-8", "replace")
    return tracer.start_span(
        f"{conventions.SEND} {message.topic}",
        context=extracted(message.headers),
        kind=SpanKind.PRODUCER,
        attributes=attributes,
    )
