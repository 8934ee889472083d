"""Moves a handler's position and records that: `rewind` reads messages again, `skip` passes over them.

The database's mark decides where a partition is read, not Kafka's committed offset. So Kafka's own tools move nothing,
but these functions do. After a rewind, the ledger deduplicates the messages that it remembers. A message that it has
forgotten cannot be proven new, and is quarantined as `stale` unless the caller lets it run. A running worker takes the
partition again at the new mark, within seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from consumerkit.errors import ConfigurationError, StartError
from consumerkit.message import TopicPartition
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage import audit, consumers, fence, progress
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import Dialect, dialect_for
from consumerkit.storage.store import Store
from consumerkit.storage.tables import Tables
from consumerkit.transports.base import Span, Transport

To = int | Literal["start", "end"]
_WAIT: Final = 30.0


@dataclass(frozen=True, slots=True)
class Moved:
    """One partition whose mark was moved, or would be.

    Attributes:
        partition: The partition.
        before: The old mark; None if the handler had not begun with it, or the topic was recreated.
        after: The new mark.
        log: The offsets that are in the log.
        gone: Whether the topic no longer has the partition, so that it is dropped.
    """

    partition: TopicPartition
    before: int | None
    after: int
    log: Span
    gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionStore:
    """Where a handler's position is stored, and the transport that knows its log."""

    database: Database
    dialect: Dialect
    tables: Tables
    transport: Transport


Place = PositionStore
"""The former name of `PositionStore`, for code that imports it."""


async def rewind(
    place: PositionStore,
    handler: str,
    topic: str,
    to: To,
    *,
    partitions: Collection[int] | None = None,
    run_forgotten: bool = False,
    actor: str | None = None,
    dry_run: bool = False,
) -> list[Moved]:
    """Move a handler back, so that it reads messages again.

    Args:
        place: Where its position is stored.
        handler: Its name.
        topic: One of its topics.
        to: The offset to go back to, or `start` for the oldest message in the log.
        partitions: The partitions to move; None means all, an empty list none. An offset needs exactly one.
        run_forgotten: Whether to run messages that the ledger may have forgotten, instead of quarantining them as
            `stale`.
        actor: Who moves it, for the record; the operating system's user by default.
        dry_run: Whether to change nothing.

    Raises:
        ConfigurationError: The handler cannot go back to there.
        StartError: There is no such handler or topic, or a worker's transaction held the partition for too long.
    """
    return await _move(place, handler, topic, to, partitions, actor, dry_run, back=True, run_forgotten=run_forgotten)


async def skip(
    place: PositionStore,
    handler: str,
    topic: str,
    to: To,
    *,
    partitions: Collection[int] | None = None,
    actor: str | None = None,
    dry_run: bool = False,
) -> list[Moved]:
    """Move a handler forward over messages, or let it begin with a recreated topic of the same name.

    Arguments and errors are those of `rewind`. `to` may be `end`, for messages sent from now on, or `start`, for the
    oldest message in the log if earlier ones were deleted unread. If the topic was recreated with fewer partitions, the
    missing ones are dropped.
    """
    return await _move(place, handler, topic, to, partitions, actor, dry_run, back=False, run_forgotten=False)


async def _move(
    place: PositionStore,
    handler: str,
    topic: str,
    to: To,
    partitions: Collection[int] | None,
    actor: str | None,
    dry_run: bool,
    *,
    back: bool,
    run_forgotten: bool,
) -> list[Moved]:
    place = await _located(place)
    consumer = await place.database.run(lambda session: _consumer(session, place.tables, handler, topic))
    asked_at = time.monotonic()
    topic_id, logs = await _logs(place.transport, topic)
    wanted = sorted(logs if partitions is None else partitions)
    gone = [] if back else await place.database.run(lambda session: _gone(session, place.tables, consumer, topic, logs))
    drops = [one for one in gone if one.partition.partition in (range(1 << 31) if partitions is None else partitions)]
    wanted = [number for number in wanted if number not in {one.partition.partition for one in drops}]
    if missing := [number for number in wanted if number not in logs]:
        raise ConfigurationError(
            f"topic {shown_word(topic)} has no partition {missing[0]}; it has {len(logs)}, from 0 on"
        )
    if isinstance(to, int) and len(wanted) + len(drops) != 1:
        raise ConfigurationError(f"offset {to}: name the one partition that it is meant for, with --partition")
    wants = {TopicPartition(topic, number): _target(logs[number], to) for number in wanted}

    def work(session: Session) -> list[Moved]:
        marks = _marks(session.connection(), place.tables, consumer, topic, topic_id)
        moved = [Moved(at, marks.get(at), offset, logs[at.partition]) for at, offset in wants.items()]
        for one in moved:
            _check(one, back=back)
        return moved + drops

    moved = await place.database.run(work)
    if not dry_run:
        who = actor or audit.current_user()
        how = {"back": back, "run_forgotten": run_forgotten}
        moved = [await _carry_out(place, consumer, topic_id, one, who, asked_at, **how) for one in moved]
    return moved


async def _located(place: PositionStore) -> PositionStore:
    tables = await place.database.locate(place.tables)
    return replace(place, tables=tables, dialect=dialect_for(place.database.dialect_name, tables))


async def _carry_out(
    place: PositionStore,
    consumer: int,
    topic_id: str,
    asked: Moved,
    actor: str,
    asked_at: float,
    *,
    back: bool,
    run_forgotten: bool,
) -> Moved:
    store = Store(place.tables, place.dialect, consumer)

    def work(session: Session) -> Moved | None:
        connection = session.connection()
        if not fence.hold(connection, store, [asked.partition], wait=_WAIT):
            return None
        standing = progress.locked_mark(connection, store, asked.partition, topic_id)
        one = _as_it_stands(asked, standing, back=back)
        if one.gone:
            progress.drop(connection, store, one.partition)
        else:
            progress.move(
                connection,
                store,
                one.partition,
                topic_id=topic_id,
                mark=one.after,
                end=max(one.log.end, one.before or 0),
                ago=time.monotonic() - asked_at,
                run_forgotten=run_forgotten,
            )
        details = _recorded(one, run_forgotten=run_forgotten)
        action = "rewind" if back else "skip"
        audit.record(connection, store.tables, actor=actor, action=action, consumer=consumer, details=details)
        return one

    done: Moved | None = await place.database.run(work)
    if done is None:
        raise StartError(f"{asked.partition}: a transaction of its worker has held it for {_WAIT:.0f} s; try again")
    return done


def _as_it_stands(asked: Moved, mark: int | None, *, back: bool) -> Moved:
    """Adapt a move to a mark that has changed since it was read, before the fence was held.

    A skip never goes back behind messages processed since. A rewind never passes over messages that another rewind
    brings back.
    """
    if asked.gone or mark is None or asked.before is None or mark == asked.before:
        return asked
    return replace(asked, before=mark, after=(min if back else max)(asked.after, mark))


def _recorded(one: Moved, *, run_forgotten: bool) -> dict[str, Any]:
    return {
        "topic": one.partition.topic,
        "partition": one.partition.partition,
        "from": one.before,
        "to": one.after,
        "run_forgotten": run_forgotten,
        **({"gone": True} if one.gone else {}),
    }


async def _logs(transport: Transport, topic: str) -> tuple[str, Mapping[int, Span]]:
    info = (await transport.topics([topic])).get(topic)
    if info is None:
        raise StartError(f"no such topic: {topic}")
    reader = transport.reader(topic)
    try:
        return info.topic_id, dict(await reader.start())
    finally:
        await reader.stop()


def _target(log: Span, to: To) -> int:
    return log.start if to == "start" else log.end if to == "end" else to


def _check(one: Moved, *, back: bool) -> None:
    if not one.log.start <= one.after <= one.log.end:
        raise ConfigurationError(
            f"{one.partition} cannot be read from offset {one.after}: the log has {one.log.start} to {one.log.end}"
        )
    if one.before is None:
        if back:
            raise ConfigurationError(f"{one.partition}: the handler has not begun with it, so it cannot go back")
        return
    if back and one.after > one.before:
        raise ConfigurationError(f"{one.partition} stands at {one.before}; to go on to {one.after}, use skip")
    if not back and one.after < one.before <= one.log.end:
        raise ConfigurationError(f"{one.partition} stands at {one.before}; to go back to {one.after}, use rewind")


def _consumer(session: Session, tables: Tables, handler: str, topic: str) -> int:
    c = tables.consumers.c
    row = session.execute(select(c.id, c.topics).where(c.name == handler)).one_or_none()
    if row is None:
        raise StartError(consumers.unknown(handler, consumers.names(session.connection(), tables)))
    topics = json.loads(row.topics)
    if topic not in topics:
        raise ConfigurationError(
            f"handler {handler!r} does not consume topic {shown_word(topic)}; it consumes {', '.join(topics)}"
        )
    return int(row.id)


def _gone(session: Session, tables: Tables, consumer: int, topic: str, logs: Collection[int]) -> list[Moved]:
    """Return the handler's partitions that the topic no longer has."""
    c = tables.partition_progress.c
    rows = session.execute(select(c.partition, c.mark).where(c.consumer == consumer, c.topic == topic))
    return [
        Moved(TopicPartition(topic, row.partition), row.mark, 0, Span(0, 0), gone=True)
        for row in rows
        if row.partition not in logs
    ]


def _marks(
    connection: Connection, tables: Tables, consumer: int, topic: str, topic_id: str
) -> dict[TopicPartition, int]:
    """Return the marks of a topic's partitions; excludes marks of an earlier topic of the same name."""
    c = tables.partition_progress.c
    rows = connection.execute(
        select(c.partition, c.mark, c.topic_id).where(c.consumer == consumer, c.topic == topic, c.mark.is_not(None))
    )
    return {TopicPartition(topic, row.partition): row.mark for row in rows if row.topic_id in (None, topic_id)}
