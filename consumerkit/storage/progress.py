"""The mark: the position that the database itself keeps, so that a position and its effects survive or vanish together.

Kafka's committed offset is a copy of the mark, for tools and for a first run. The mark is written
under the owner's token just before the offset is committed, and the next owner starts at the mark.

The *window* is kept beside it: nothing at or above `window_end` had been processed at `window_at`.
Once the mark reaches `window_end`, everything processed before `window_at` lies below the mark and
may be forgotten, and `settled_at` takes that time.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, bindparam, case, delete, func, insert, select, update

from consumerkit.message import TopicPartition
from consumerkit.storage.store import Store

OWNER_BYTES: Final = 16
_MARGIN: Final = 1.0  # added to the seconds since the log's end was asked for


class Standing(NamedTuple):
    """A partition's stored progress.

    Attributes:
        topic_id: The topic's ID when the consumer began with it; None before its first run.
        start: Where its first run began.
        mark: Every message below it has its outcome; None before the first run.
        forgotten_below: The IDs of messages below it may be forgotten.
    """

    topic_id: str | None = None
    start: int | None = None
    mark: int | None = None
    forgotten_below: int = 0


class Mark(NamedTuple):
    """What an owner records.

    Attributes:
        owner: Its token.
        offset: The mark.
        before: The mark as the owner knows it: a lower one in the database shows that commits were
            lost.
        ahead: Nothing at or above it has been processed yet.
    """

    owner: bytes
    offset: int
    before: int
    ahead: int


class Begun(NamedTuple):
    """Where an owner begins after it takes a partition over.

    Attributes:
        topic_id: The topic's ID.
        mark: Where this owner begins.
        start: Where the consumer's first run began; an earlier value stays.
        end: The log's end.
    """

    topic_id: str
    mark: int
    start: int
    end: int


def begin(
    connection: Connection,
    store: Store,
    begun: Mapping[TopicPartition, Begun],
    *,
    ago: float,
) -> None:
    """Record where an owner begins after taking partitions over; their ends were asked for `ago` seconds ago.

    The caller commits.
    """
    table = store.tables.partition_progress
    c = table.c
    mark = bindparam("to_mark", type_=c.mark.type)
    values = {
        "topic_id": bindparam("to_topic_id"),
        "start": func.coalesce(c.start, bindparam("to_start", type_=c.start.type)),
        "marked_at": case((c.mark.is_not_distinct_from(mark), c.marked_at), else_=func.now()),
        "mark": mark,
        # Everything that previous owners processed lies below the end of the log at that time.
        "window_end": func.coalesce(c.window_end, bindparam("to_end", type_=c.window_end.type)),
        "window_at": func.coalesce(c.window_at, store.dialect.in_seconds(-(ago + _MARGIN))),
    }
    rows = [
        {
            **at(partition),
            "to_topic_id": one.topic_id,
            "to_mark": one.mark,
            "to_start": one.start,
            "to_end": one.end,
        }
        for partition, one in begun.items()
    ]
    if rows:
        connection.execute(update(table).where(*anywhere(store)).values(values), rows)


def advance(connection: Connection, store: Store, marks: Mapping[TopicPartition, Mark]) -> set[TopicPartition]:
    """Write marks; return the partitions that are no longer their owner's, or that lost a mark.

    `marks` were read after this transaction began: what is fetched later cannot have been processed
    before it.
    """
    if not marks:
        return set()
    table = store.tables.partition_progress
    c = table.c
    offset, ahead = bindparam("to_mark", type_=c.mark.type), bindparam("to_end", type_=c.window_end.type)
    passed = c.window_end <= offset
    values = {
        "mark": offset,
        "marked_at": func.now(),
        "settled_at": case((passed, c.window_at), else_=c.settled_at),
        "window_at": case((passed, func.now()), else_=c.window_at),
        "window_end": case((passed, ahead), else_=c.window_end),
    }
    mine = (c.owner == bindparam("by_owner"), c.mark >= bindparam("from_mark", type_=c.mark.type))
    rows = [
        {
            **at(partition),
            "by_owner": one.owner,
            "from_mark": one.before,
            "to_mark": one.offset,
            "to_end": max(one.offset, one.ahead),
        }
        # Sorted, as in every transaction that locks several of these rows.
        for partition, one in sorted(marks.items())
    ]
    connection.execute(update(table).where(*anywhere(store), *mine).values(values), rows)
    # Many updates at once return no counts. A row of ours that was not written has a mark below the
    # one it had.
    topics, numbers = zip(*marks, strict=True)
    written = select(c.topic, c.partition, c.owner, c.mark).where(
        c.consumer == store.consumer, c.topic.in_(set(topics)), c.partition.in_(set(numbers))
    )
    found = {TopicPartition(*place): (bytes(owner), mark) for *place, owner, mark in connection.execute(written)}
    return {partition for partition, one in marks.items() if found.get(partition) != (one.owner, one.offset)}


def locked_mark(connection: Connection, store: Store, partition: TopicPartition, topic_id: str) -> int | None:
    """Lock a partition's row and return its mark; None if there is none, or if its topic is another."""
    c = store.tables.partition_progress.c
    query = select(c.mark, c.topic_id).where(here(store, partition)).with_for_update()
    row = connection.execute(query).one_or_none()
    return None if row is None or row.topic_id not in (None, topic_id) else row.mark


def move(
    connection: Connection,
    store: Store,
    partition: TopicPartition,
    *,
    topic_id: str,
    mark: int,
    end: int,
    ago: float,
    run_forgotten: bool,
) -> Standing | None:
    """Move a partition's mark for a person, fence its owner, and return the previous mark.

    The caller's transaction holds the fence. The owner finds another token, takes the partition
    again, and so reads the new mark. Messages above it may have been processed, so nothing is
    forgotten before the mark has passed the log's end as it was when it was asked for, `ago`
    seconds ago.
    """
    table = store.tables.partition_progress
    c = table.c
    place = here(store, partition)
    row = connection.execute(select(table).where(place).with_for_update()).one_or_none()
    values: dict[str, Any] = {
        "owner": secrets.token_bytes(OWNER_BYTES),
        "given_back": True,
        "deaths": 0,
        "suspects": "{}",
        "topic_id": topic_id,
        "mark": mark,
        "marked_at": func.now(),
        "window_end": end,
        # A worker may have processed newer messages before the fence was asked for.
        "window_at": store.dialect.in_seconds(-(ago + _MARGIN)),
        "settled_at": None,
    }
    if row is None:
        at_place = {"consumer": store.consumer, "topic": partition.topic, "partition": partition.partition}
        connection.execute(insert(table).values({**at_place, **values, "start": mark}))
        return None
    made_anew = row.topic_id is not None and row.topic_id != topic_id
    if made_anew:
        values |= {"start": mark, "forgotten_below": 0}
    else:
        # If the database is lost, everything that a rewind has read must be read again too.
        values["start"] = case((c.start > mark, mark), else_=c.start)
        if run_forgotten:
            values["forgotten_below"] = case((c.forgotten_below > mark, mark), else_=c.forgotten_below)
    connection.execute(update(table).where(place).values(values))
    return standing(row)


def marks(connection: Connection, store: Store) -> dict[tuple[str, str], dict[int, int]]:
    """Return a consumer's marks by partition, for each topic's name and ID."""
    c = store.tables.partition_progress.c
    known = (c.consumer == store.consumer, c.mark.is_not(None), c.topic_id.is_not(None))
    found: dict[tuple[str, str], dict[int, int]] = {}
    for row in connection.execute(select(c.topic, c.topic_id, c.partition, c.mark).where(*known)):
        found.setdefault((row.topic, row.topic_id), {})[row.partition] = row.mark
    return found


def drop(connection: Connection, store: Store, partition: TopicPartition) -> None:
    """Forget a partition that its topic no longer has; the caller's transaction holds the fence."""
    connection.execute(delete(store.tables.partition_progress).where(here(store, partition)))


def standing(row: Any) -> Standing:
    """Return the progress in a row of `partition_progress`."""
    return Standing(row.topic_id, row.start, row.mark, row.forgotten_below)


def anywhere(store: Store) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of a statement that runs once for many partitions; `at` gives each one's parameters."""
    c = store.tables.partition_progress.c
    return c.consumer == store.consumer, c.topic == bindparam("at_topic"), c.partition == bindparam("at_partition")


def at(partition: TopicPartition) -> dict[str, Any]:
    """Return a partition's parameters for `anywhere`."""
    return {"at_topic": partition.topic, "at_partition": partition.partition}


def here(store: Store, partition: TopicPartition) -> ColumnElement[bool]:
    """Return the condition that a row is this partition's."""
    c = store.tables.partition_progress.c
    return and_(c.consumer == store.consumer, c.topic == partition.topic, c.partition == partition.partition)
