"""Traces with OpenTelemetry: one span for each message, linked to the span of the batch that shares its transaction.

Nothing here imports OpenTelemetry before a worker asks for traces; `NO_TRACES` costs only empty
calls.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from consumerkit.errors import ConfigurationError
from consumerkit.message import Headers, Message
from consumerkit.observability import conventions
from consumerkit.observability.propagation import extracted
from consumerkit.observability.send_spans import NO_SENDS, Outgoing, Sends, fail, sending

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext, TracerProvider

_REMEMBERED: Final = 10_000
"""Messages whose last attempt a worker remembers, to link the next attempt's span to it."""


class Spanned(Protocol):
    """The part of a batch's message that its span needs."""

    message: Message
    message_id: str
    attempt: int


class BatchSpans(Protocol):
    """The spans of one batch: its own, and one for each message that is handled."""

    def enter(self, item: Spanned, surroundings: Context) -> None:
        """Begin a message's span, as the current span of `surroundings`."""

    def follow(self, message: Message, surroundings: Context) -> None:
        """Let code in `surroundings`, before the transaction, continue the trace of a message's headers."""

    def whole(self, items: Sequence[Spanned], surroundings: Context) -> None:
        """Link the batch's span to its messages' traces, and make it the current span of `surroundings`."""

    def leave(self, outcome: str) -> None:
        """End the span of the message that was entered last."""

    def headers(self) -> Headers:
        """Return the headers that continue the current message's trace; the batch's trace if no message is current."""
        ...

    def end(self, error: BaseException | None) -> None:
        """End the batch's span, and the span of the message whose code raised the error."""


class Traces(Protocol):
    """Begins the spans of batches, and of messages that are sent."""

    def batch(self, handler: str, group: str, messages: Sequence[Message]) -> BatchSpans:
        """Begin a batch's span."""
        ...

    def sending(self, messages: Sequence[Outgoing], id_header: str) -> AbstractContextManager[Sends]:
        """Keep spans for sent messages until the block ends; `id_header` names their message IDs."""
        ...


class _NoSpans:
    """Traces nothing."""

    def batch(self, handler: str, group: str, messages: Sequence[Message]) -> BatchSpans:
        return self

    def sending(self, messages: Sequence[Outgoing], id_header: str) -> AbstractContextManager[Sends]:
        return nullcontext(NO_SENDS)

    def enter(self, item: Spanned, surroundings: Context) -> None:
        pass

    def follow(self, message: Message, surroundings: Context) -> None:
        pass

    def whole(self, items: Sequence[Spanned], surroundings: Context) -> None:
        pass

    def leave(self, outcome: str) -> None:
        pass

    def headers(self) -> Headers:
        return ()

    def end(self, error: BaseException | None) -> None:
        pass


NO_SPANS: Final[BatchSpans] = _NoSpans()
NO_TRACES: Final[Traces] = _NoSpans()


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

    def remember(self, message: Message, attempt: SpanContext) -> None:
        """Store a message's last attempt, for the next one's link."""
        with self._lock:
            self._attempts[_place(message)] = attempt
            while len(self._attempts) > _REMEMBERED:
                self._attempts.popitem(last=False)

    def recalled(self, message: Message) -> SpanContext | None:
        """Return and forget a message's last attempt, if this worker made it."""
        with self._lock:
            return self._attempts.pop(_place(message), None)


class _Spans:
    """The spans of one batch."""

    def __init__(self, traces: OpenTelemetryTraces, handler: str, group: str, count: int) -> None:
        self._traces = traces
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
        from opentelemetry.trace import Link, SpanKind, set_span_in_context

        message = item.message
        attributes: dict[str, Any] = {
            **self._common,
            conventions.DESTINATION: message.topic,
            conventions.PARTITION: str(message.partition),
            conventions.OFFSET: message.offset,
            conventions.MESSAGE_ID: item.message_id,
            conventions.ATTEMPT: item.attempt,
        }
        if message.value is None:
            attributes[conventions.TOMBSTONE] = True
        links = [Link(self._batch.get_span_context())]
        if (before := self._traces.recalled(message)) is not None:
            links.append(Link(before))
        parent = extracted(message.headers)
        span = self._traces.tracer.start_span(
            f"{conventions.PROCESS} {message.topic}",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=links,
        )
        surroundings.run(attach, set_span_in_context(span, parent))
        self._open = span
        self._messages.append((message, span))

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
                self._traces.remember(message, span.get_span_context())
        if self._open is not None:
            self._open.end()
            self._open = None
        self._batch.end()


def _place(message: Message) -> _Place:
    return _Place(message.topic, message.partition, message.offset)
