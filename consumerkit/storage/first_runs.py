"""Where a handler's first run on a topic begins: decided once, for all partitions that the topic then has.

A partition that is missing from that record was added later, so all its messages are newer than the
first run. The record is kept by the topic's ID: a topic that was recreated under its name is
another topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import Connection, insert, select

from consumerkit.storage.store import Store


class Source(StrEnum):
    """What decided where a partition's first run begins."""

    START = "start"
    END = "end"
    COMMITTED = "committed"
    MARK = "mark"


class FirstStart(NamedTuple):
    """Where the first run on one partition begins.

    Attributes:
        source: What decided it.
        offset: The first message to read; None if the broker could not tell when it was asked.
        asked_at: When the broker was asked, in milliseconds since 1970.
    """

    source: Source
    offset: int | None
    asked_at: int


class LatestTopic(NamedTuple):
    """The latest topic of a name, and the partitions that it had when its first run was decided."""

    topic_id: str
    partitions: set[int]


def recorded(connection: Connection, store: Store, topic: str, topic_id: str) -> dict[int, FirstStart]:
    """Return what was decided about a topic's partitions; empty if nothing was."""
    c = store.tables.first_runs.c
    rows = connection.execute(
        select(c.partition, c.source, c.start, c.asked_at).where(
            c.consumer == store.consumer, c.topic == topic, c.topic_id == topic_id
        )
    )
    return {row.partition: FirstStart(Source(row.source), row.start, row.asked_at) for row in rows}


def decide(
    connection: Connection,
    store: Store,
    topic: str,
    topic_id: str,
    wanted: Mapping[int, FirstStart],
) -> dict[int, FirstStart]:
    """Record where a first run begins, unless another worker was first; return the decision that counts.

    The caller's transaction reads what others commit while it waits (READ COMMITTED), and the
    caller commits.
    """
    consumers, table = store.tables.consumers, store.tables.first_runs
    connection.execute(select(consumers.c.id).where(consumers.c.id == store.consumer).with_for_update())
    if found := recorded(connection, store, topic, topic_id):
        return found
    place = {"consumer": store.consumer, "topic": topic, "topic_id": topic_id}
    rows = [
        {**place, "partition": number, "source": one.source.value, "start": one.offset, "asked_at": one.asked_at}
        for number, one in sorted(wanted.items())
    ]
    connection.execute(insert(table), rows)
    return dict(wanted)


def latest(connection: Connection, store: Store) -> dict[str, LatestTopic]:
    """Return, by topic name, the topic that a handler met last, with the partitions that it then had.

    Excludes what an upgrade took over from an older release: it does not say which topic was the
    last.
    """
    c = store.tables.first_runs.c
    told = select(c.topic, c.topic_id, c.partition).where(c.consumer == store.consumer, c.source != Source.MARK.value)
    rows = connection.execute(told.order_by(c.asked_at, c.topic_id))
    found: dict[str, LatestTopic] = {}
    for row in rows:
        if row.topic not in found or found[row.topic].topic_id != row.topic_id:
            found[row.topic] = LatestTopic(row.topic_id, set())
        found[row.topic].partitions.add(row.partition)
    return found


def had_another(connection: Connection, store: Store, topic: str, topic_id: str) -> bool:
    """Return whether the handler has begun with an earlier topic of this name that is now deleted."""
    c = store.tables.partition_progress.c
    other = (c.consumer == store.consumer, c.topic == topic, c.mark.is_not(None), c.topic_id != topic_id)
    return connection.execute(select(c.partition).where(*other).limit(1)).first() is not None
