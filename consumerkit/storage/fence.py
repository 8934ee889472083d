"""The fence: one worker at a time acts for a partition, whatever Kafka's members believe.

Every transaction that handles messages of a partition holds the partition's advisory lock, shared, and checks at its
end that the owner token is still the one its worker wrote. Taking a partition over takes the lock exclusively, and so
waits until the transactions of the owner before have ended; it writes a new token, and only then loads what is parked.
So a paused owner that wakes finds either the lock or the token in its way.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, func, insert, select, tuple_, update

from consumerkit.message import TopicPartition
from consumerkit.storage.dialects import Dialect
from consumerkit.storage.progress import Standing, anywhere, at, standing
from consumerkit.storage.tables import Tables

OWNER_BYTES: Final = 16
Owners = Mapping[TopicPartition, bytes]


def number(tables: Tables, consumer: int, partition: TopicPartition) -> int:
    """Return the number of a partition's advisory lock: 64 bits, since all users of a database share one space."""
    name = f"{tables.identity(tables.partition_progress)}\x00{consumer}\x00{partition.topic}\x00{partition.partition}"
    return int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"fence").digest(), "big", signed=True)


class Taken(NamedTuple):
    """What a take-over found.

    Attributes:
        owner: The new token.
        deaths: Owners in a row before us that neither gave the partition back nor got any further.
        suspects: The offsets that began to run alone and left no trace, with how often.
        standing: How far its owners before have come.
        ours: Whether the owner before was this process, so that no other has owned it since.
        new: Whether it never had an owner.
    """

    owner: bytes
    deaths: int
    suspects: dict[int, int]
    standing: Standing = Standing()
    ours: bool = False
    new: bool = False


def take(
    connection: Connection,
    dialect: Dialect,
    tables: Tables,
    consumer: int,
    partition: TopicPartition,
    *,
    wait: float,
    own: bytes | None = None,
) -> Taken | None:
    """Take one partition over, in the caller's transaction; what is parked must be read in it, too.

    Args:
        connection: The caller's; it commits.
        dialect: Its dialect.
        tables: The table definitions.
        consumer: The handler's number.
        partition: What to take.
        wait: Seconds to wait for transactions of the owner before.
        own: The token that this process itself wrote last: to take a partition from oneself is no death.

    Returns:
        None when the wait was too short.
    """
    held = hold(connection, dialect, tables, consumer, [partition], wait=wait)
    tokens = {} if own is None else {partition: own}
    found = look(connection, tables, consumer, held, tokens, wait=wait > 0)
    write(connection, tables, consumer, found)
    return found.get(partition)


def hold(
    connection: Connection,
    dialect: Dialect,
    tables: Tables,
    consumer: int,
    partitions: Collection[TopicPartition],
    *,
    wait: float,
) -> list[TopicPartition]:
    """Hold the fences of partitions until the caller's transaction ends; return those that are held.

    Only one partition may be waited for: who holds one fence and waits for another keeps everybody out of the first.
    """
    if wait <= 0:
        names = {number(tables, consumer, partition): partition for partition in partitions}
        return [names[fence] for fence in dialect.take_free(connection, sorted(names))]
    (partition,) = partitions
    return [partition] if dialect.take_over(connection, number(tables, consumer, partition), wait=wait) else []


def look(
    connection: Connection,
    tables: Tables,
    consumer: int,
    partitions: Collection[TopicPartition],
    own: Owners,
    *,
    wait: bool,
) -> dict[TopicPartition, Taken]:
    """Find out how partitions stand whose fences this transaction holds, and lock their rows; nothing is written yet.

    A partition whose row another transaction has locked is waited for, or left out.
    """
    if not partitions:
        return {}  # and no statement: a wait that was too short has ended the transaction
    # Locked, since the owner before may be about to write its mark, for which it needs no fence.
    before = _rows(connection, tables, consumer, partitions, locking=True, wait=wait)
    missing = [partition for partition in partitions if partition not in before]
    locked = _rows(connection, tables, consumer, missing, locking=False, wait=wait) if missing and not wait else {}
    free = [partition for partition in partitions if partition not in locked]
    return {partition: _found(before.get(partition), own.get(partition)) for partition in free}


def write(connection: Connection, tables: Tables, consumer: int, taken: Mapping[TopicPartition, Taken]) -> None:
    """Write the new tokens of partitions that `look` has found, in its transaction."""
    table = tables.partition_progress
    new = [
        {"consumer": consumer, "topic": partition.topic, "partition": partition.partition, "owner": one.owner}
        for partition, one in taken.items()
        if one.new
    ]
    if new:
        connection.execute(insert(table), new)
    old = [
        {**at(partition), "to_owner": one.owner, "to_deaths": one.deaths}
        for partition, one in taken.items()
        if not one.new
    ]
    if old:
        here = anywhere(tables, consumer)
        values: dict[str, Any] = {"owner": bindparam("to_owner"), "deaths": bindparam("to_deaths")}
        taken_over = update(table).where(*here).values(taken_at=func.now(), given_back=False, **values)
        connection.execute(taken_over, old)


def _rows(
    connection: Connection,
    tables: Tables,
    consumer: int,
    partitions: Collection[TopicPartition],
    *,
    locking: bool,
    wait: bool,
) -> dict[TopicPartition, Row[Any]]:
    table = tables.partition_progress
    c = table.c
    here = tuple_(c.topic, c.partition).in_([*map(tuple, partitions)])
    query = select(table).where(c.consumer == consumer, here).order_by(c.topic, c.partition)
    if locking:
        query = query.with_for_update(skip_locked=not wait)
    return {TopicPartition(row.topic, row.partition): row for row in connection.execute(query)}


def _found(before: Row[Any] | None, own: bytes | None) -> Taken:
    owner = secrets.token_bytes(OWNER_BYTES)
    if before is None:
        return Taken(owner, 0, {}, new=True)
    ours = bytes(before.owner) == own
    deaths = 0 if before.given_back else before.deaths + (not ours)
    suspects = {int(offset): times for offset, times in json.loads(before.suspects).items()}
    return Taken(owner, deaths, suspects, standing(before), ours=ours)


def give_back(connection: Connection, tables: Tables, consumer: int, owners: Owners) -> None:
    """Write down that partitions were given back with nothing under way, those that are still ours."""
    table = tables.partition_progress
    mine = (*anywhere(tables, consumer), table.c.owner == bindparam("by_owner"))
    # In one order, as everybody does who locks several of these rows.
    rows = [{**at(partition), "by_owner": owner} for partition, owner in sorted(owners.items())]
    if rows:
        connection.execute(update(table).where(*mine).values(given_back=True, **_CALM), rows)


def calm(connection: Connection, tables: Tables, consumer: int, partition: TopicPartition, owner: bytes) -> None:
    """Write down that this owner got further than those that died before it."""
    _update(connection, tables, consumer, partition, owner, **_CALM)


def suspect(
    connection: Connection,
    tables: Tables,
    consumer: int,
    partition: TopicPartition,
    owner: bytes,
    suspects: Mapping[int, int],
) -> None:
    """Write down which messages run alone, or began to and were not heard of any more, and how often."""
    _update(connection, tables, consumer, partition, owner, suspects=json.dumps(suspects))


_CALM: Final[dict[str, Any]] = {"deaths": 0, "suspects": "{}"}


def _here(tables: Tables, consumer: int, partition: TopicPartition) -> ColumnElement[bool]:
    c = tables.partition_progress.c
    return and_(c.consumer == consumer, c.topic == partition.topic, c.partition == partition.partition)


def _update(
    connection: Connection, tables: Tables, consumer: int, partition: TopicPartition, owner: bytes, **values: Any
) -> None:
    table = tables.partition_progress
    mine = and_(_here(tables, consumer, partition), table.c.owner == owner)
    connection.execute(update(table).where(mine).values(**values))


def count_owned(connection: Connection, tables: Tables, consumer: int, owners: Owners) -> int:
    """Return for how many of the partitions the token is still ours."""
    c = tables.partition_progress.c
    mine = tuple_(c.topic, c.partition, c.owner).in_([(*partition, owner) for partition, owner in owners.items()])
    return int(connection.execute(select(func.count()).where(c.consumer == consumer, mine)).scalar_one())


def numbers(tables: Tables, consumer: int, partitions: Collection[TopicPartition]) -> list[int]:
    """Return the numbers of several partitions' locks, sorted."""
    return sorted(number(tables, consumer, partition) for partition in partitions)
