"""What a worker needs of spans; `NO_TRACES` makes none, and costs only empty calls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from typing import Final, Protocol

from consumerkit.events.announcer import HasHeaders
from consumerkit.message import Headers, Message
from consumerkit.observability.send_spans import NO_SENDS, Outgoing, Sends


class Spanned(Protocol):
    """The part of a batch's message that its span needs."""

    message: Message
    message_id: str
    attempt: int


class Ended(Protocol):
    """A message that ended without its handler's call, such as a dead letter."""

    @property
    def message(self) -> Message:
        """The record."""
        ...

    @property
    def message_id(self) -> str | None:
        """Its ID; None if it has none."""
        ...


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

    def unhandled(self, item: Ended, error: str) -> None:
        """Make a span for a message that ended without one, such as one that cannot be read, unless it has one."""

    def surround(self, surroundings: Context) -> None:
        """Make the batch's span the current one of `surroundings`."""

    def end(self, error: BaseException | None) -> None:
        """End the batch's span, and the span of the message whose code raised the error."""


class Traces(Protocol):
    """Begins the spans of batches, and of messages that are sent."""

    def batch(self, handler: str, group: str, messages: Sequence[Message]) -> BatchSpans:
        """Begin a batch's span."""
        ...

    def about(self, handler: str, about: HasHeaders, surroundings: Context) -> None:
        """Make the span of a message's last attempt the current one, or the context in the message's headers."""

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

    def unhandled(self, item: Ended, error: str) -> None:
        pass

    def surround(self, surroundings: Context) -> None:
        pass

    def about(self, handler: str, about: HasHeaders, surroundings: Context) -> None:
        pass

    def headers(self) -> Headers:
        return ()

    def end(self, error: BaseException | None) -> None:
        pass


NO_SPANS: Final[BatchSpans] = _NoSpans()
NO_TRACES: Final[Traces] = _NoSpans()
