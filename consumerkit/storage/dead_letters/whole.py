"""Whether the table has the whole message of a dead letter, for records that refer to it."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from consumerkit.storage.tables import Tables


def keeps_value(
    connection: Connection, tables: Tables, handler: str, place: tuple[str, int, int], message_id: str
) -> bool:
    """Return whether the table still has the whole message of a dead letter; by topic, partition, offset and ID."""
    topic, partition, offset = place
    c, consumers = tables.dead_letters.c, tables.consumers.c
    query = (
        select(c.id)
        .join_from(tables.dead_letters, tables.consumers, c.consumer == consumers.id)
        .where(consumers.name == handler, c.topic == topic, c.partition == partition, c.offset == offset)
        .where(func.coalesce(c.message_id, "") == message_id, c.value.is_not(None), c.erased_at.is_(None))
    )
    return connection.execute(query.limit(1)).first() is not None
