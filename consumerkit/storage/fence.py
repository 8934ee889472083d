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

from sqlalchemy import Connection, Row, and_, bindparam, func, insert, select, tuple_, update

from consumerkit.message import TopicPartition
from consumerkit.storage.progress import Standing, anywhere, at, here, standing
from consumerkit.storage.store import Store
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
        crashes: Owners in a row before us that neither gave the partition back nor got any further.
        suspect_offsets: The offsets that began to run alone and left no trace, with how often.
        standing: How far its owners before have come.
        ours: Whether the owner before was this process, so that no other has owned it since.
        new: Whether it never had an owner.
    """

    owner: bytes
    crashes: int
    suspect_offsets: dict[int, int]
    standing: Standing = Standing()
    ours: bool = False
    new: bool = False


def take(
    connection: Connection,
    store: Store,
    partition: TopicPartition,
    *,
    wait: float,
    own: bytes | None = None,
) -> Taken | None:
    """Take one partition over, in the caller's transaction; what is parked must be read in it, too.

    Args:
        connection: The caller's; it commits.
        store: Where the handler's rows are.
        partition: What to take.
        wait: Seconds to wait for transactions of the owner before.
        own: The token that this process itself wrote last: to take a partition from oneself is no death.

    Returns:
        None when the wait was too short.
    """
    held = hold(connection, store, [partition], wait=wait)
    tokens = {} if own is None else {partition: own}
    found = look(connection, store, held, tokens, wait=wait > 0)
    write(connection, store, found)
    return found.get(partition)


def hold(
    connection: Connection,
    store: Store,
    partitions: Collection[TopicPartition],
    *,
    wait: float,
) -> list[TopicPartition]:
    """Hold the fences of partitions until the caller's transaction ends; return those that are held.

    Wait for one partition only: a holder of one fence that waits for another keeps all others out of the first.
    """
    if wait <= 0:
        names = {number(store.tables, store.consumer, partition): partition for partition in partitions}
        return [names[fence] for fence in store.dialect.take_free(connection, sorted(names))]
    (partition,) = partitions
    fence = number(store.tables, store.consumer, partition)
    return [partition] if store.dialect.take_over(connection, fence, wait=wait) else []


def look(
    connection: Connection,
    store: Store,
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
    before = _rows(connection, store, partitions, locking=True, wait=wait)
    missing = [partition for partition in partitions if partition not in before]
    locked = _rows(connection, store, missing, locking=False, wait=wait) if missing and not wait else {}
    free = [partition for partition in partitions if partition not in locked]
    return {partition: _found(before.get(partition), own.get(partition)) for partition in free}


def write(connection: Connection, store: Store, taken: Mapping[TopicPartition, Taken]) -> None:
    """Write the new tokens of partitions that `look` has found, in its transaction."""
    table = store.tables.partition_progress
    new = [
        {"consumer": store.consumer, "topic": partition.topic, "partition": partition.partition, "owner": one.owner}
        for partition, one in taken.items()
        if one.new
    ]
    if new:
        connection.execute(insert(table), new)
    old = [
        {**at(partition), "to_owner": one.owner, "to_deaths": one.crashes}
        for partition, one in taken.items()
        if not one.new
    ]
    if old:
        named = anywhere(store)
        values: dict[str, Any] = {"owner": bindparam("to_owner"), "deaths": bindparam("to_deaths")}
        taken_over = update(table).where(*named).values(taken_at=func.now(), given_back=False, **values)
        connection.execute(taken_over, old)


def _rows(
    connection: Connection,
    store: Store,
    partitions: Collection[TopicPartition],
    *,
    locking: bool,
    wait: bool,
) -> dict[TopicPartition, Row[Any]]:
    table = store.tables.partition_progress
    c = table.c
    these = tuple_(c.topic, c.partition).in_([*map(tuple, partitions)])
    query = select(table).where(c.consumer == store.consumer, these).order_by(c.topic, c.partition)
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


def give_back(connection: Connection, store: Store, owners: Owners) -> None:
    """Write down that partitions were given back with nothing under way, those that are still ours."""
    table = store.tables.partition_progress
    mine = (*anywhere(store), table.c.owner == bindparam("by_owner"))
    # In one order, as in every transaction that locks several of these rows.
    rows = [{**at(partition), "by_owner": owner} for partition, owner in sorted(owners.items())]
    if rows:
        connection.execute(update(table).where(*mine).values(given_back=True, **_NO_CRASHES), rows)


def revoke(connection: Connection, store: Store, partition: TopicPartition) -> None:
    """Give a partition a token that its owner does not know; that the owner takes it again is no crash.

    The take-over to come adds one to the owners that died, which is subtracted here.
    """
    table = store.tables.partition_progress
    owned = update(table).where(here(store, partition), ~table.c.given_back)
    connection.execute(owned.values(owner=secrets.token_bytes(OWNER_BYTES), deaths=table.c.deaths - 1))


def clear_crashes(connection: Connection, store: Store, partition: TopicPartition, owner: bytes) -> None:
    """Write down that this owner got further than those that died before it."""
    _update(connection, store, partition, owner, **_NO_CRASHES)


def suspect(
    connection: Connection,
    store: Store,
    partition: TopicPartition,
    owner: bytes,
    suspects: Mapping[int, int],
) -> None:
    """Write down which messages run alone, or began to and were not heard of any more, and how often."""
    _update(connection, store, partition, owner, suspects=json.dumps(suspects))


_NO_CRASHES: Final[dict[str, Any]] = {"deaths": 0, "suspects": "{}"}


def _update(connection: Connection, store: Store, partition: TopicPartition, owner: bytes, **values: Any) -> None:
    table = store.tables.partition_progress
    mine = and_(here(store, partition), table.c.owner == owner)
    connection.execute(update(table).where(mine).values(**values))


def count_owned(connection: Connection, store: Store, owners: Owners) -> int:
    """Return for how many of the partitions the token is still ours."""
    c = store.tables.partition_progress.c
    mine = tuple_(c.topic, c.partition, c.owner).in_([(*partition, owner) for partition, owner in owners.items()])
    return int(connection.execute(select(func.count()).where(c.consumer == store.consumer, mine)).scalar_one())


def numbers(tables: Tables, consumer: int, partitions: Collection[TopicPartition]) -> list[int]:
    """Return the numbers of several partitions' locks, sorted."""
    return sorted(number(tables, consumer, partition) for partition in partitions)
