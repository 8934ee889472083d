"""Events as log lines, and the fields by which a line, a span and a message are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consumerkit.observability.current_message import MessageFields, add_message_fields, message_fields
    from consumerkit.observability.logs import JsonFormatter, TextFormatter

__all__ = ["JsonFormatter", "MessageFields", "TextFormatter", "add_message_fields", "message_fields"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name in ("JsonFormatter", "TextFormatter"):
        from consumerkit.observability import logs

        return getattr(logs, name)
    if name in ("MessageFields", "add_message_fields", "message_fields"):
        from consumerkit.observability import current_message

        return getattr(current_message, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
