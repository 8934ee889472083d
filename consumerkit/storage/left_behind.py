"""Rows that wait for code which is not deployed: undos, parked messages, and letters for `on_dead_letter`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Float, Select, cast, func, literal, select
from sqlalchemy.orm import Session

from consumerkit.storage.dialects import Dialect, dialect_for
from consumerkit.storage.parking import occupancy
from consumerkit.storage.parking.parked import Kind
from consumerkit.storage.step_values import StepState
from consumerkit.storage.tables import Tables

OVERDUE: Final = 900.0
"""Seconds for which a row may be due before its handler counts as not deployed; a worker takes one within seconds."""
UNDOS: Final = "undos"
MESSAGES: Final = "messages"
CALLS: Final = "calls"


class LeftBehind(NamedTuple):
    """Rows that no deployed code takes.

    Attributes:
        handler: The handler's name.
        what: "undos", "messages", or "calls" (of `on_dead_letter`).
        topic: The topic that the handler no longer consumes; empty for others.
        rows: How many they are.
        seconds: For how long the first one has been due; of calls, for how long no worker has taken or recorded one. 0
            if none is due, or if that is not known.
    """

    handler: str
    what: str
    topic: str
    rows: int
    seconds: float = 0.0


def of_handler(
    session: Session, tables: Tables, name: str, number: int, topics: Collection[str], *, has_steps: bool
) -> list[LeftBehind]:
    """Return the rows of a deployed handler that it does not take.

    Args:
        session: The caller's.
        tables: The table definitions.
        name: The handler's name.
        number: The handler's number.
        topics: The topics that it consumes.
        has_steps: Whether it has steps, and so undoes what is due.
    """
    found = [
        LeftBehind(name, MESSAGES, topic, count)
        for topic, count in occupancy.left_behind(session, tables, number, topics)
    ]
    if not has_steps:
        found += [one for one in undos(session, tables) if one.handler == name]
    return found


def overdue(session: Session, tables: Tables, besides: Collection[str] = ()) -> list[LeftBehind]:
    """Return rows that have been due for long: no worker has these handlers, or the worker that has them stands still.

    Args:
        session: The caller's.
        tables: The table definitions.
        besides: Names of handlers to leave out.
    """
    found = [*undos(session, tables), *_messages(session, tables), *calls(session, tables)]
    return [one for one in found if one.seconds > OVERDUE and one.handler not in besides]


def unbound(session: Session, tables: Tables, besides: Collection[str] = ()) -> list[LeftBehind]:
    """Return the parked messages of topics that their handlers, as they were started last, do not consume."""
    c = tables.consumers.c
    rows = session.execute(select(c.id, c.name, c.topics).where(c.name.not_in(besides)).order_by(c.name)).all()
    bound = {row.id: (row.name, set(json.loads(row.topics or "[]"))) for row in rows}
    parked = tables.parked_messages.c
    query = select(parked.consumer, parked.topic, func.count()).group_by(parked.consumer, parked.topic)
    return [
        LeftBehind(bound[number][0], MESSAGES, topic, count)
        for number, topic, count in session.execute(query.order_by(parked.consumer, parked.topic))
        if number in bound and topic not in bound[number][1]
    ]


def has_steps(session: Session, tables: Tables, number: int) -> bool:
    """Return whether the record has steps of a handler, whatever the handler declares today."""
    c = tables.message_steps.c
    return session.execute(select(literal(1)).where(c.consumer == number).limit(1)).first() is not None


def undos(session: Session, tables: Tables) -> list[LeftBehind]:
    """Return the steps that wait to be undone, by handler."""
    c = tables.message_steps.c
    waits = (c.undo_at.is_not(None), c.state == StepState.UNDOING.value)
    return _counted(session, UNDOS, _query(session, tables, tables.message_steps, c.undo_at).where(*waits))


def calls(session: Session, tables: Tables) -> list[LeftBehind]:
    """Return the dead letters that wait for `on_dead_letter`, by handler.

    A worker that makes the calls of a long backlog has just taken one, however late the first one is.
    """
    c = tables.dead_letters.c
    query = _query(session, tables, tables.dead_letters, c.hook_at, func.max)
    return _counted(session, CALLS, query.where(c.hook_at.is_not(None)))


def _messages(session: Session, tables: Tables) -> list[LeftBehind]:
    c = tables.parked_messages.c
    waits = (c.due_at.is_not(None), c.kind.in_((Kind.MESSAGE.value, Kind.REPEAT.value)))
    query = _query(session, tables, tables.parked_messages, c.due_at).where(*waits)
    return _counted(session, MESSAGES, query)


def _query(
    session: Session, tables: Tables, table: Any, due_at: ColumnElement[Any], of_all: Callable[..., Any] = func.min
) -> Select[Any]:
    dialect: Dialect = dialect_for(session.connection().dialect.name, tables)
    late: ColumnElement[float] = cast(dialect.seconds_since(of_all(due_at)), Float)
    consumers = tables.consumers
    return (
        select(consumers.c.name, func.count(), late)
        .join_from(table, consumers, table.c.consumer == consumers.c.id)
        .group_by(consumers.c.name)
        .order_by(consumers.c.name)
    )


def _counted(session: Session, what: str, query: Select[Any]) -> list[LeftBehind]:
    rows: Sequence[Any] = session.execute(query).all()
    return [LeftBehind(name, what, "", count, max(0.0, late)) for name, count, late in rows]
