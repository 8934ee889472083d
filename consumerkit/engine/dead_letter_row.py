"""What a dead letter's row says: the message, and what `on_dead_letter` gets."""

from __future__ import annotations

from typing import Any

from consumerkit.handlers.dead_lettered import DeadLetteredMessage
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.storage.payload import Payload


def message_of(row: Any, found: Payload) -> Message:
    """Return a letter's message, with this value and these headers."""
    key = None if row.key is None else bytes(row.key)
    return Message(row.topic, row.partition, row.offset, key, found.value, found.headers, row.timestamp, row.topic_id)


def letter_of(row: Any, found: Payload) -> DeadLetteredMessage:
    """Return what the user's method gets."""
    return DeadLetteredMessage(
        id=row.id,
        message=message_of(row, found),
        message_id=row.message_id or "",
        reason=Reason(row.reason),
        error_type=row.error_type,
        error=row.error,
        attempts=row.attempts,
        redrives=row.redrives,
    )
