"""What surrounds a log line or a call that is about a message: the message's fields and its span."""

from __future__ import annotations

from contextvars import Context

from consumerkit.events.announcer import HasHeaders, Surround
from consumerkit.message import Message
from consumerkit.observability import current_message
from consumerkit.observability.spans import Traces


def surrounded_by(traces: Traces) -> Surround:
    """Return what sets a message and the span of its last attempt in a context.

    A message that is to be sent has only a span: that of its writer.
    """

    def surround(context: Context, handler: str, about: HasHeaders, message_id: str, attempt: int) -> None:
        if isinstance(about, Message):
            current_message.enter(context, handler, about, message_id, attempt)
        traces.about(handler, about, context)

    return surround
