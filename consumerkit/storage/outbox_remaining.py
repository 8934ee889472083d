"""What of the outbox is still there, for a relay that holds messages back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select

from consumerkit.storage.dialects import Dialect
from consumerkit.storage.portions import portions
from consumerkit.storage.tables import Tables


class Remaining(NamedTuple):
    """What the outbox still holds of some messages and topics.

    Attributes:
        sequences: The messages that still wait.
        topics: The digests of topics for which any message waits.
    """

    sequences: frozenset[int]
    topics: frozenset[bytes]


def remaining(
    connection: Connection, dialect: Dialect, tables: Tables, sequences: Sequence[int], topics: Sequence[bytes]
) -> Remaining:
    """Return which of these messages still wait, and for which of these topics any message does.

    Args:
        connection: Of the caller's transaction.
        dialect: Its dialect.
        tables: The table definitions.
        sequences: The messages.
        topics: The topics' digests.
    """
    c = tables.outbox_messages.c
    rows: list[int] = []
    for some in portions(sequences):
        rows += connection.execute(select(c.sequence).where(c.sequence.in_(some))).scalars()
    # One row of the index for each topic: DISTINCT would read all of a topic's messages.
    first = select(c.place).order_by(c.topic_digest, c.key_digest, c.place).limit(1)
    with dialect.by_index(connection):
        waiting = [one for one in topics if connection.execute(first.where(c.topic_digest == one)).first() is not None]
    return Remaining(frozenset(rows), frozenset(waiting))
