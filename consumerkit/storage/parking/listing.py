"""Shows people the parking lot: lists messages, groups them, and makes them due."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Float, Select, and_, cast, func, select, update
from sqlalchemy.orm import Session

from consumerkit.storage import audit
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.parking.parked import Kind
from consumerkit.storage.tables import Tables

_WHOLE_PARTITION = "partition"  # an `Ordering`, as the consumers' table has it
_HOLDING = (Kind.HELD.value, Kind.RELEASED.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedSelection:
    """Chooses parked messages; all given conditions must hold, and no condition means all messages.

    Args:
        ids: These IDs, as `consumerkit parked list` shows them; an empty list means none, not all.
        handler: The handler's name.
        error_type: The type of the last error, as the list shows it.

    Example:
        >>> ParkedSelection(handler="credit-account").is_everything
        False
    """

    ids: Collection[int] | None = None
    handler: str | None = None
    error_type: str | None = None

    @property
    def is_everything(self) -> bool:
        """Whether no condition is given: all parked messages are selected."""
        return self == ParkedSelection()

    def where(self, tables: Tables) -> ColumnElement[bool]:
        """Return the condition on the rows of `parked_messages`."""
        c, consumers = tables.parked_messages.c, tables.consumers.c
        conditions: list[ColumnElement[bool]] = [c.id.is_not(None)]
        if self.ids is not None:
            conditions.append(c.id.in_(self.ids))
        if self.handler is not None:
            conditions.append(c.consumer.in_(select(consumers.id).where(consumers.name == self.handler)))
        if self.error_type is not None:
            conditions.append(c.error_type == self.error_type)
        return and_(*conditions)


def listed(
    session: Session, tables: Tables, selection: ParkedSelection, *, limit: int = 50, after: int = 0
) -> Sequence[Any]:
    """Return parked messages in their order, without payloads; `after` is an ID to page on from.

    Each has `due_in`: seconds until its next attempt, None if it waits behind another message.
    """
    c = tables.parked_messages.c
    about = (c.id, c.topic, c.partition, c.offset, c.message_id, c.kind, c.attempts, c.error_type, c.error)
    query = _joined(session, tables, *about, c.parked_at, c.due_at).where(selection.where(tables), c.id > after)
    return session.execute(query.order_by(c.id).limit(limit)).all()


def shown(session: Session, tables: Tables, number: int) -> Any | None:
    """Return one whole parked message with its handler's name and `due_in`, or None."""
    query = _joined(session, tables, tables.parked_messages, tables.consumers.c.ordering)
    return session.execute(query.where(tables.parked_messages.c.id == number)).one_or_none()


def behind(session: Session, tables: Tables, parked: Any) -> Sequence[int]:
    """Return the ID of the message that a parked one waits behind; empty if it waits behind none."""
    c = tables.parked_messages.c
    if parked.due_at is not None or parked.kind == Kind.HELD.value:
        return ()
    ahead = select(c.id).where(
        c.consumer == parked.consumer, c.topic == parked.topic, c.partition == parked.partition, c.id < parked.id
    )
    any_key = parked.ordering == _WHOLE_PARTITION or parked.key_digest is None
    own = ahead if any_key else ahead.where(c.key_digest == parked.key_digest)
    return session.scalars(own.order_by(c.id).limit(1)).all()


def grouped(session: Session, tables: Tables, selection: ParkedSelection) -> Sequence[Any]:
    """Return (handler, error type, messages, due, one's ID, oldest, newest), the largest group first."""
    c, consumers = tables.parked_messages.c, tables.consumers.c
    count = func.count()
    group = (consumers.name.label("handler"), c.error_type)
    return session.execute(
        select(
            *group,
            count.label("messages"),
            count.filter(c.due_at <= _now(session, tables)).label("due"),
            func.min(c.id).label("first"),
            func.min(c.parked_at).label("oldest"),
            func.max(c.parked_at).label("newest"),
        )
        .join_from(tables.parked_messages, tables.consumers, c.consumer == consumers.id)
        .where(selection.where(tables), c.kind.not_in(_HOLDING))
        .group_by(*group)
        .order_by(count.desc(), func.min(c.id))
    ).all()


def make_due(session: Session, tables: Tables, selection: ParkedSelection, *, actor: str) -> int:
    """Make the chosen messages due now, and record it; return how many of them were due later.

    A message that waits behind another keeps its turn. Attempts count as before: a message that
    fails its last attempt is dead-lettered.
    """
    table = tables.parked_messages
    c, now = table.c, _now(session, tables)
    later = and_(selection.where(tables), c.kind.not_in(_HOLDING), c.due_at > now)
    hastened = session.execute(update(table).where(later).values(due_at=now).returning(c.id, c.consumer)).all()
    for consumer in sorted({row.consumer for row in hastened}):
        ids = sorted(row.id for row in hastened if row.consumer == consumer)
        details = {"messages": len(ids), "first": ids[:100]}
        audit.record(
            session.connection(), tables, actor=actor, action="parked retry-now", consumer=consumer, details=details
        )
    return len(hastened)


def _joined(session: Session, tables: Tables, *columns: Any) -> Select[Any]:
    c, consumers = tables.parked_messages.c, tables.consumers.c
    dialect = dialect_for(session.connection().dialect.name, tables)
    due_in = cast(-dialect.seconds_since(c.due_at), Float).label("due_in")
    return select(*columns, consumers.name.label("handler"), due_in).join_from(
        tables.parked_messages, tables.consumers, c.consumer == consumers.id
    )


def _now(session: Session, tables: Tables) -> ColumnElement[Any]:
    return dialect_for(session.connection().dialect.name, tables).in_seconds(0.0)
