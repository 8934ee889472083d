"""How much each handler has in the parking lot: for people, and for the checks at a worker's start."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Float, cast, func, select
from sqlalchemy.orm import Session

from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.parking.parked import Kind
from consumerkit.storage.tables import Tables


def count_by_handler(session: Session, tables: Tables) -> Sequence[Any]:
    """Return (handler name, messages parked, how many of them are due, when the oldest was parked, keys held).

    A row that holds a dead message's key, or has released it and waits for the partition's owner,
    is not counted.
    """
    c, consumers = tables.parked_messages.c, tables.consumers.c
    now = dialect_for(session.connection().dialect.name, tables).in_seconds(0.0)
    message = c.kind.not_in([Kind.HELD.value, Kind.RELEASED.value])
    counted = (
        func.count().filter(message),
        func.count().filter(message, c.due_at <= now),
        func.min(c.parked_at).filter(message),
        func.count().filter(~message),
    )
    return session.execute(
        select(consumers.name, *counted)
        .join_from(tables.parked_messages, tables.consumers, c.consumer == consumers.id)
        .group_by(consumers.name)
        .order_by(consumers.name)
    ).all()


def oldest_waiting(session: Session, tables: Tables, consumers: Collection[int]) -> dict[int, float]:
    """Return for how many seconds the oldest parked message of each consumer waits; omits consumers without one."""
    c = tables.parked_messages.c
    age = dialect_for(session.connection().dialect.name, tables).seconds_since(func.min(c.parked_at))
    query = (
        select(c.consumer, cast(age, Float))
        .where(c.consumer.in_(consumers), c.kind.not_in([Kind.HELD.value, Kind.RELEASED.value]))
        .group_by(c.consumer)
    )
    return {consumer: max(0.0, seconds) for consumer, seconds in session.execute(query)}


def left_behind(session: Session, tables: Tables, consumer: int, topics: Collection[str]) -> Sequence[Any]:
    """Return (topic, messages parked) for a consumer's parked messages of topics that are not in `topics`."""
    c = tables.parked_messages.c
    return session.execute(
        select(c.topic, func.count())
        .where(c.consumer == consumer, c.topic.not_in(topics))
        .group_by(c.topic)
        .order_by(c.topic)
    ).all()
