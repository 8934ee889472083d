"""Dead letters that are too large for their topic: sent by reference, since the table holds the whole message."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy.orm import Session

from consumerkit.message import Headers
from consumerkit.policies.dead_letter import BY_REFERENCE, HEADER_PREFIX
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.tables import Tables

_STACK = HEADER_PREFIX + "stack"
_HISTORY = HEADER_PREFIX + "history"
_ORIGIN = ("consumer", "topic", "partition", "offset", "message-id")


def is_dead_letter(message: OutboxMessage) -> bool:
    """Tell a dead letter from a handler's own message, which may carry the same headers on, but ends with its ID."""
    return bool(message.headers) and message.headers[-1][0].startswith(HEADER_PREFIX)


def is_kept(session: Session, tables: Tables, message: OutboxMessage) -> bool:
    """Tell whether the table still holds the whole message that a dead letter in the outbox is a copy of."""
    facts = dict(message.headers)
    try:
        consumer, topic, partition, offset, name = (
            (facts[HEADER_PREFIX + fact] or b"").decode("utf-8", "surrogateescape") for fact in _ORIGIN
        )
        place = (topic, int(partition), int(offset))
        return dead_letters.keeps_value(session.connection(), tables, consumer, place, name)
    except (KeyError, ValueError):
        return False


def smaller(message: OutboxMessage) -> Iterator[OutboxMessage]:
    """Return a dead letter without its value and stack, and then, where even that is too large, the facts alone."""
    mark: Headers = ((BY_REFERENCE, b"true"),)
    headers = tuple(header for header in message.headers if header[0] not in (_STACK, BY_REFERENCE))
    facts = tuple(header for header in headers if header[0].startswith(HEADER_PREFIX) and header[0] != _HISTORY)
    yield OutboxMessage(message.topic, message.key, None, headers + mark)
    yield OutboxMessage(message.topic, None, None, facts + mark)
