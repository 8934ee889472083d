"""The outbox: messages to send, written in the transaction that made them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, type_coerce
from sqlalchemy.orm import Session
from sqlalchemy.types import NullType

from consumerkit.message import Headers, bytes_of
from consumerkit.storage import audit
from consumerkit.storage import headers as header_text
from consumerkit.storage.dialects import Dialect
from consumerkit.storage.payload import payload, sealed
from consumerkit.storage.portions import portions
from consumerkit.storage.tables import Tables

T = TypeVar("T")

MESSAGE_ID_HEADER: Final = "message-id"
"""The header that holds the ID of a message we send."""
_AT_ONCE: Final = 300  # three parameters a row, and a statement of an older SQLite takes 999


class OutboxMessage(NamedTuple):
    """One message to send, its message ID among the headers."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers


class RowIdentity(NamedTuple):
    """Distinguishes a row from any other that ever had its number.

    A database that lost commits, by a failover or a restored backup, hands out the same numbers
    again.

    Attributes:
        sequence: The number.
        created_at: When the row was written, as the driver returns it.
        headers: As they are stored; they hold the message's ID.
    """

    sequence: int
    created_at: Any
    headers: str


class Queue(NamedTuple):
    """The rows of one topic and key, which are sent one after another; or a topic's rows without a key, in any order.

    Attributes:
        topic: The topic's digest, as the database stores it.
        key: The key's digest; empty for rows without a key.
    """

    topic: bytes
    key: bytes


class Pending(NamedTuple):
    """A message in the outbox."""

    sequence: int
    message: OutboxMessage
    identity: RowIdentity
    queue: Queue


class Old(NamedTuple):
    """A message that waited long: its destination, when it was written, and how many seconds ago."""

    sequence: int
    topic: str
    created_at: datetime
    seconds: float


def append(connection: Connection, tables: Tables, messages: Sequence[OutboxMessage]) -> None:
    """Write messages, in order, in the caller's transaction."""
    if messages:
        rows = [
            sealed(
                tables.sealer,
                {"topic": m.topic, "key": m.key, "value": m.value, "headers": header_text.dump(m.headers)},
            )
            for m in messages
        ]
        connection.execute(insert(tables.outbox_messages), rows)


def page(connection: Connection, tables: Tables, rows: int, most_bytes: int) -> list[Pending]:
    """Return the lowest rows, in order, as many as fit, and at least one.

    One snapshot shows them all. So if a row is here, so is every lower row of its queue that was
    committed before this row was inserted.

    Args:
        connection: Of the caller's transaction.
        tables: The table definitions.
        rows: The largest number of rows.
        most_bytes: The limit for the bytes of keys, values and headers; the first row may exceed it
            alone.
    """
    c = tables.outbox_messages.c
    # Sizes first: a database returns a value's length without reading the value.
    query = select(c.sequence, _length(tables)).order_by(c.sequence).limit(rows)
    fitting: list[int] = []
    for sequence, length in connection.execute(query):
        most_bytes -= length
        if fitting and most_bytes < 0:
            break
        fitting.append(sequence)
    return read(connection, tables, fitting)


def stored_bytes(connection: Connection, tables: Tables, sequences: Sequence[int]) -> dict[int, int]:
    """Return how many bytes the key, value and headers of rows have, by sequence."""
    c = tables.outbox_messages.c
    sizes: dict[int, int] = {}
    for some in portions(sequences, _AT_ONCE):
        found = connection.execute(select(c.sequence, _length(tables)).where(c.sequence.in_(some)))
        sizes.update((sequence, length) for sequence, length in found)
    return sizes


def _length(tables: Tables) -> ColumnElement[int]:
    c = tables.outbox_messages.c
    return func.length(c.headers) + func.coalesce(func.length(c.key), 0) + func.coalesce(func.length(c.value), 0)


def read(connection: Connection, tables: Tables, sequences: Sequence[int]) -> list[Pending]:
    """Return the messages with these sequences that still exist, in order."""
    if not sequences:
        return []
    c = tables.outbox_messages.c
    columns = (c.sequence, c.topic, c.key, c.value, c.headers, c.sealed, c.topic_digest, c.key_digest)
    query = select(*columns, _moment(tables).label("moment")).where(c.sequence.in_(sequences))
    return [
        Pending(
            row.sequence,
            OutboxMessage(row.topic, _bytes(row.key), *payload(tables.sealer, row)),
            RowIdentity(row.sequence, row.moment, row.headers),
            Queue(bytes(row.topic_digest), bytes(row.key_digest)),
        )
        for row in connection.execute(query.order_by(c.sequence))
    ]


def _moment(tables: Tables) -> ColumnElement[Any]:
    # Untyped, so that it is compared as it was read: SQLAlchemy writes the same moment in another
    # form than SQLite's.
    return type_coerce(tables.outbox_messages.c.created_at, NullType())


def size(pending: Pending) -> int:
    """Return about how many bytes a message takes."""
    _, key, value, headers = pending.message
    return bytes_of(key, value, headers)


def remove(connection: Connection, tables: Tables, sent: Sequence[RowIdentity]) -> None:
    """Delete messages that were sent; other messages that have their numbers by now stay."""
    c = tables.outbox_messages.c
    # Column by column: comparing whole rows took six times as long. A later row under a number has
    # another moment.
    columns = (c.sequence, _moment(tables), c.headers)
    for some in portions(sent, _AT_ONCE):
        known = (column.in_(set(found)) for column, found in zip(columns, zip(*some, strict=True), strict=True))
        connection.execute(delete(tables.outbox_messages).where(*known))


def count(connection: Connection, tables: Tables) -> dict[str, int]:
    """Return how many messages wait, by topic."""
    c = tables.outbox_messages.c
    rows = connection.execute(select(c.topic, func.count()).group_by(c.topic).order_by(c.topic))
    return {topic: number for topic, number in rows}  # noqa: C416 - rows are not plain tuples


def waiting(connection: Connection, tables: Tables) -> Sequence[Any]:
    """Return (topic, how many messages wait, since when the oldest waits) for each topic."""
    c = tables.outbox_messages.c
    query = select(c.topic, func.count(), func.min(c.created_at)).group_by(c.topic).order_by(c.topic)
    return connection.execute(query).all()


def listed(
    session: Session, tables: Tables, *, topic: str | None = None, limit: int = 50, after: int = 0
) -> Sequence[Any]:
    """Return waiting messages, oldest first, without payloads; `after` is a sequence to page on from."""
    c = tables.outbox_messages.c
    size = func.coalesce(func.length(c.key), 0) + func.coalesce(func.length(c.value), 0) + func.length(c.headers)
    query = select(c.sequence, c.topic, size.label("size"), c.created_at).where(c.sequence > after)
    if topic is not None:
        query = query.where(c.topic == topic)
    return session.execute(query.order_by(c.sequence).limit(limit)).all()


def discard(session: Session, tables: Tables, sequence: int, *, actor: str) -> str | None:
    """Remove an unsent message and record who did it; return its topic, or None if it does not exist."""
    c = tables.outbox_messages.c
    # Removed before its details are read: the details then belong to this row, and not to one sent
    # since.
    row = session.execute(
        delete(tables.outbox_messages)
        .where(c.sequence == sequence)
        .returning(c.topic, func.coalesce(func.length(c.value), 0), c.headers)
    ).one_or_none()
    if row is None:
        return None
    topic, size, headers = row
    details = {"sequence": sequence, "topic": topic, "message_id": _named(headers), "value_bytes": size}
    audit.record(session.connection(), tables, actor=actor, action="outbox discard", details=details)
    return str(topic)


def expire(connection: Connection, tables: Tables, before: ColumnElement[Any], limit: int, *, actor: str) -> list[Old]:
    """Remove the first messages written before a moment, and record it; call it while no relay sends.

    A relay may have died after it sent a message and before it removed the row, so the record says
    that the message may have been published.
    """
    table = tables.outbox_messages
    c = table.c
    facts = (c.sequence, c.topic, c.headers, c.created_at, func.coalesce(func.length(c.value), 0).label("size"))
    old = select(*facts).where(c.created_at < before).order_by(c.sequence).limit(limit)
    rows = connection.execute(old.with_for_update(skip_locked=True)).all()
    if not rows:
        return []
    connection.execute(delete(table).where(c.sequence.in_([row.sequence for row in rows])))
    messages = [
        {
            "sequence": row.sequence,
            "topic": row.topic,
            "message_id": _named(row.headers),
            "value_bytes": row.size,
            "created_at": row.created_at.isoformat(),
        }
        for row in rows
    ]
    details = {"may_have_been_published": True, "messages": messages}
    audit.record(connection, tables, actor=actor, action="outbox expire", details=details)
    return [Old(row.sequence, row.topic, row.created_at, 0.0) for row in rows]


def count_old(connection: Connection, tables: Tables, before: ColumnElement[Any]) -> int:
    """Return how many messages were written before a moment."""
    c = tables.outbox_messages.c
    return int(connection.execute(select(func.count()).where(c.created_at < before)).scalar_one())


def oldest(connection: Connection, tables: Tables, dialect: Dialect) -> Old | None:
    """Return the message that waits first; only concurrent transactions may number theirs in another order."""
    c = tables.outbox_messages.c
    age: ColumnElement[Any] = dialect.seconds_since(c.created_at)
    row = connection.execute(select(c.sequence, c.topic, c.created_at, age).order_by(c.sequence).limit(1)).first()
    return None if row is None else Old(row[0], row[1], row[2], float(row[3]))


def _named(headers: str) -> str | None:
    """Return a message's ID from its stored headers; None if they have none, or are sealed."""
    try:
        ids = [value for name, value in header_text.load(headers) if name == MESSAGE_ID_HEADER]
    except ValueError:
        return None
    return (ids[-1] or b"").decode("utf-8", "backslashreplace") if ids else None


def _bytes(value: bytes | None) -> bytes | None:
    return None if value is None else bytes(value)
