"""Traces with OpenTelemetry: one span for each message, linked to the span of the batch that shares its transaction.

Nothing here imports OpenTelemetry before a worker asks for traces.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from consumerkit.errors import ConfigurationError
from consumerkit.events.announcer import HasHeaders
from consumerkit.message import Headers, Message
from consumerkit.observability import conventions
from consumerkit.observability.propagation import extracted
from consumerkit.observability.send_spans import Outgoing, Sends, fail, sending
from consumerkit.observability.spans import NO_TRACES, BatchSpans, Ended, Spanned, Traces

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext, TracerProvider

_REMEMBERED: Final = 10_000
"""Messages whose last attempt a worker remembers, to link the next attempt's span to it."""


def traces_of(given: bool | TracerProvider) -> Traces:
    """Return the maker of a worker's spans.

    Args:
        given: False for none, True for the global provider, or a provider.

    Raises:
        ConfigurationError: It is none of these, or opentelemetry-api is not installed.
    """
    if given is False:
        return NO_TRACES
    try:
        from opentelemetry.trace import TracerProvider
    except ImportError:
        raise ConfigurationError(
            "Worker(tracing=True) needs opentelemetry-api; install consumerkit[opentelemetry]"
        ) from None
    if given is not True and not isinstance(given, TracerProvider):
        raise ConfigurationError(
            f"Worker(tracing=...): {type(given).__name__} is not a TracerProvider; give one, or True for the global one"
        )
    return OpenTelemetryTraces(None if given is True else given)


class _Place(NamedTuple):
    handler: str
    topic: str
    partition: int
    offset: int


class OpenTelemetryTraces:
    """Spans by OpenTelemetry's API.

    Args:
        provider: The provider of the tracer; None means the global one.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        from opentelemetry.trace import get_tracer

        self.tracer = get_tracer("consumerkit", tracer_provider=provider, schema_url=conventions.SCHEMA_URL)
        self._attempts: OrderedDict[_Place, SpanContext] = OrderedDict()
        self._lock = threading.Lock()

    def batch(self, handler: str, group: str, messages: Sequence[Message]) -> BatchSpans:
        """See `Traces.batch`."""
        return _Spans(self, handler, group, len(messages))

    def sending(self, messages: Sequence[Outgoing], id_header: str) -> AbstractContextManager[Sends]:
        """See `Traces.sending`."""
        return sending(self.tracer, messages, id_header)

    def about(self, handler: str, about: HasHeaders, surroundings: Context) -> None:
        """See `Traces.about`."""
        from opentelemetry.context import attach
        from opentelemetry.trace import NonRecordingSpan, set_span_in_context

        context = extracted(about.headers)
        if isinstance(about, Message) and (attempt := self.last_attempt(handler, about)) is not None:
            context = set_span_in_context(NonRecordingSpan(attempt), context)
        surroundings.run(attach, context)

    def remember(self, handler: str, message: Message, attempt: SpanContext) -> None:
        """Store a message's last attempt, for the next one's link and for log lines about it."""
        with self._lock:
            self._attempts[_place(handler, message)] = attempt
            while len(self._attempts) > _REMEMBERED:
                self._attempts.popitem(last=False)

    def last_attempt(self, handler: str, message: Message) -> SpanContext | None:
        """Return a message's last attempt, if this worker made it."""
        with self._lock:
            return self._attempts.get(_place(handler, message))

    def recalled(self, handler: str, message: Message) -> SpanContext | None:
        """Return and forget a message's last attempt, if this worker made it."""
        with self._lock:
            return self._attempts.pop(_place(handler, message), None)


class _Spans:
    """The spans of one batch."""

    def __init__(self, traces: OpenTelemetryTraces, handler: str, group: str, count: int) -> None:
        self._traces = traces
        self._handler = handler
        self._common = {
            conventions.SYSTEM: conventions.KAFKA,
            conventions.OPERATION_NAME: conventions.PROCESS,
            conventions.OPERATION_TYPE: conventions.PROCESS,
            conventions.GROUP: group,
            conventions.HANDLER: handler,
        }
        from opentelemetry.context import Context as NoParent

        attributes: dict[str, Any] = {**self._common, conventions.BATCH_COUNT: count}
        # A trace of its own: the messages of a batch belong to many traces.
        self._batch = traces.tracer.start_span(f"batch {handler}", context=NoParent(), attributes=attributes)
        self._open: Span | None = None
        self._messages: list[tuple[Message, Span]] = []

    def enter(self, item: Spanned, surroundings: Context) -> None:
        from opentelemetry.context import attach
        from opentelemetry.trace import set_span_in_context

        message = item.message
        parent = extracted(message.headers)
        own = {conventions.MESSAGE_ID: item.message_id, conventions.ATTEMPT: item.attempt}
        self._open = span = self._begun(message, parent, own)
        surroundings.run(attach, set_span_in_context(span, parent))
        self._messages.append((message, span))

    def _begun(self, message: Message, parent: Any, own: Mapping[str, Any]) -> Span:
        from opentelemetry.trace import Link, SpanKind

        attributes: dict[str, Any] = {
            **self._common,
            conventions.DESTINATION: message.topic,
            conventions.PARTITION: str(message.partition),
            conventions.OFFSET: message.offset,
            **own,
        }
        if message.value is None:
            attributes[conventions.TOMBSTONE] = True
        links = [Link(self._batch.get_span_context())]
        if (before := self._traces.recalled(self._handler, message)) is not None:
            links.append(Link(before))
        return self._traces.tracer.start_span(
            f"{conventions.PROCESS} {message.topic}",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=links,
        )

    def unhandled(self, item: Ended, error: str) -> None:
        message = item.message
        if self._traces.last_attempt(self._handler, message) is not None:
            return
        own = {conventions.MESSAGE_ID: item.message_id} if item.message_id else {}
        span = self._begun(message, extracted(message.headers), own)
        fail(span, error)
        span.end()
        self._traces.remember(self._handler, message, span.get_span_context())

    def follow(self, message: Message, surroundings: Context) -> None:
        from opentelemetry.context import attach

        surroundings.run(attach, extracted(message.headers))

    def whole(self, items: Sequence[Spanned], surroundings: Context) -> None:
        from opentelemetry.context import attach
        from opentelemetry.trace import get_current_span, set_span_in_context

        for item in items:
            context = get_current_span(extracted(item.message.headers)).get_span_context()
            if context.is_valid:
                self._batch.add_link(context)
            self._messages.append((item.message, self._batch))
        surroundings.run(attach, set_span_in_context(self._batch))

    def surround(self, surroundings: Context) -> None:
        from opentelemetry.context import attach
        from opentelemetry.trace import set_span_in_context

        surroundings.run(attach, set_span_in_context(self._batch))

    def leave(self, outcome: str) -> None:
        if self._open is not None:
            self._open.set_attribute(conventions.OUTCOME, outcome)
            self._open.end()
            self._open = None

    def headers(self) -> Headers:
        from opentelemetry.propagate import inject
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        inject(carrier, context=set_span_in_context(self._open or self._batch))
        return tuple((name, value.encode()) for name, value in carrier.items())

    def end(self, error: BaseException | None) -> None:
        if error is not None:
            for span in filter(None, (self._open, self._batch)):
                fail(span, type(error).__qualname__)
            for message, span in self._messages:
                self._traces.remember(self._handler, message, span.get_span_context())
        if self._open is not None:
            self._open.end()
            self._open = None
        self._batch.end()


def _place(handler: str, message: Message) -> _Place:
    return _Place(handler, message.topic, message.partition, message.offset)
