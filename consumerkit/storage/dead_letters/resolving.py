"""A success resolves the dead letters of its message ID, in the same transaction."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, and_, or_, select, update

from consumerkit.outcome import Reason
from consumerkit.storage.dead_letters.history import entry, extended
from consumerkit.storage.dead_letters.letters import State, resolved
from consumerkit.storage.origins import Origin, home
from consumerkit.storage.parking.parked import Kind
from consumerkit.storage.store import Store
from consumerkit.storage.tables import Tables


def settle(
    connection: Connection,
    store: Store,
    numbers: Collection[int],
    by: str,
    note: str,
) -> None:
    """Mark redriven letters, and the other letters of the same message IDs, as resolved: the message was processed."""
    table = store.tables.dead_letters
    c = table.c
    ids = select(c.digest).where(c.id.in_(numbers), c.digest.is_not(None), _own_id(store.tables))
    same = and_(c.digest.in_(ids), _own_id(store.tables))
    _resolve(connection, store, or_(c.id.in_(numbers), same), by, note)


def settle_ids(
    connection: Connection,
    store: Store,
    digests: Collection[bytes],
    by: str,
    note: str,
) -> None:
    """Mark the letters of message IDs as resolved: a resend was processed."""
    which = and_(store.tables.dead_letters.c.digest.in_(digests), _own_id(store.tables))
    _resolve(connection, store, which, by, note)


def _own_id(tables: Tables) -> ColumnElement[bool]:
    """Exclude conflicts: they carry another message's ID, and that message's outcome says nothing about them."""
    return tables.dead_letters.c.reason != Reason.CONFLICT.value


def _resolve(
    connection: Connection,
    store: Store,
    which: ColumnElement[bool],
    by: str,
    note: str,
) -> None:
    table = store.tables.dead_letters
    c = table.c
    found = select(c.id, c.history).where(c.consumer == store.consumer, which, c.state.in_(_OPEN))
    for number, history in connection.execute(found.order_by(c.id).with_for_update()).all():
        more = extended(history, entry("resolved", by, note=note))
        connection.execute(update(table).where(c.id == number).values(history=more, **resolved()))
        _let_go(connection, store, number)


def _let_go(connection: Connection, store: Store, letter: int) -> None:
    """Release the key that a letter holds, in any partition: the letter is decided.

    This transaction does not hold another partition's fence, so it does not know the head there.
    The row is due whatever stands before it: its owner only takes it out and continues with the row
    that stands first.
    """
    table = store.tables.parked_messages
    c = table.c
    held = update(table).where(c.consumer == store.consumer, c.dead_letter == letter, c.kind == Kind.HELD.value)
    connection.execute(held.values(kind=Kind.RELEASED.value, due_at=store.dialect.in_seconds(0.0)))


def origins(connection: Connection, store: Store, digests: Collection[bytes]) -> dict[bytes, dict[Origin, int]]:
    """Return the letters of message IDs, by their origin in the log; without conflicts."""
    c = store.tables.dead_letters.c
    own = (c.consumer == store.consumer, c.digest.in_(digests), _own_id(store.tables))
    found: dict[bytes, dict[Origin, int]] = {}
    for row in connection.execute(select(c.digest, c.topic_id, c.partition, c.offset, c.id).where(*own)):
        found.setdefault(bytes(row.digest), {})[home(row.topic_id), row.partition, row.offset] = row.id
    return found


_OPEN = (State.DEAD.value, State.REDRIVEN.value)
