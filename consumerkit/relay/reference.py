"""Dead letters too large for their topic are sent by reference; the table holds the whole message."""

from __future__ import annotations

from sqlalchemy.orm import Session

from consumerkit.dead_letters.formats.consumerkit import reference_of
from consumerkit.storage.dead_letters.whole import keeps_value
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.tables import Tables


def is_kept(session: Session, tables: Tables, message: OutboxMessage) -> bool:
    """Tell whether the table still holds the whole message of a dead letter in the outbox."""
    found = reference_of(message)
    if found is None:
        return False
    place = (found.topic, found.partition, found.offset)
    return keeps_value(session.connection(), tables, found.consumer, place, found.message_id)
