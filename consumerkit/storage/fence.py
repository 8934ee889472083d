"""The fence: one worker at a time acts for a partition, whatever Kafka's members believe.

Every transaction that handles a partition's messages holds the partition's advisory lock, shared.
At its end it checks that the owner token is still the one its worker wrote. A take-over needs the
lock exclusively, so it waits until the previous owner's transactions end. Then it writes a new
token, and only then loads the parked messages. A paused owner that wakes up meets either the lock
or the new token.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, and_, bindparam, func, insert, select, tuple_, update

from consumerkit.message import TopicPartition
from consumerkit.storage.progress import OWNER_BYTES, Standing, anywhere, at, here, standing
from consumerkit.storage.store import Store
from consumerkit.storage.tables import Tables

Owners = Mapping[TopicPartition, bytes]


def number(tables: Tables, consumer: int, partition: TopicPartition) -> int:
    """Return the number of a partition's advisory lock: 64 bits, since all users of a database share one space."""
    name = f"{tables.identity(tables.partition_progress)}\x00{consumer}\x00{partition.topic}\x00{partition.partition}"
    return int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"fence").digest(), "big", signed=True)


class Taken(NamedTuple):
    """The result of a take-over.

    Attributes:
        owner: The new token.
        crashes: Previous owners in a row that neither gave the partition back nor got any further.
        suspect_offsets: The offsets that began to run alone and left no trace, and how often each
            did.
        standing: The progress of the previous owners.
        ours: Whether this process was the previous owner, and no other owned it since.
        new: Whether it never had an owner.
    """

    owner: bytes
    crashes: int
    suspect_offsets: dict[int, int]
    standing: Standing = Standing()
    ours: bool = False
    new: bool = False


def acquire(
    connection: Connection,
    store: Store,
    partition: TopicPartition,
    *,
    wait: float,
    own: bytes | None = None,
) -> Taken | None:
    """Take one partition over in the caller's transaction, which must also read its parked messages.

    Args:
        connection: The caller's; it commits.
        store: Where the handler's rows are.
        partition: What to take.
        wait: Seconds to wait for the previous owner's transactions.
        own: The last token that this process wrote: taking a partition from oneself does not count
            as a crash.

    Returns:
        None if the wait was too short.
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
    """Hold the fences of partitions until the caller's transaction ends; return the partitions that are held.

    Wait for one partition only: a transaction that holds one fence and waits for another blocks all
    others on the first.
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
    """Read and lock the rows of partitions whose fences this transaction holds; write nothing yet.

    If another transaction has locked a partition's row, the call waits for it or leaves the
    partition out.
    """
    if not partitions:
        return {}  # no statement either: a wait that was too short has ended the transaction
    # Locked, since the previous owner may be about to write its mark, for which it needs no fence.
    before = _rows(connection, store, partitions, locking=True, wait=wait)
    missing = [partition for partition in partitions if partition not in before]
    locked = _rows(connection, store, missing, locking=False, wait=wait) if missing and not wait else {}
    free = [partition for partition in partitions if partition not in locked]
    return {partition: _found(before.get(partition), own.get(partition)) for partition in free}


def write(connection: Connection, store: Store, taken: Mapping[TopicPartition, Taken]) -> None:
    """Write the new tokens of the partitions that `look` found, in its transaction."""
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


def release(connection: Connection, store: Store, owners: Owners) -> None:
    """Record that partitions were given back with nothing running; skips those that are no longer ours."""
    table = store.tables.partition_progress
    mine = (*anywhere(store), table.c.owner == bindparam("by_owner"))
    # Sorted, as in every transaction that locks several of these rows.
    rows = [{**at(partition), "by_owner": owner} for partition, owner in sorted(owners.items())]
    if rows:
        connection.execute(update(table).where(*mine).values(given_back=True, **_NO_CRASHES), rows)


def revoke(connection: Connection, store: Store, partition: TopicPartition) -> None:
    """Give a partition a token that its owner does not know; it is no crash if the owner takes it again.

    The next take-over counts one more crash, so one is subtracted here.
    """
    table = store.tables.partition_progress
    owned = update(table).where(here(store, partition), ~table.c.given_back)
    connection.execute(owned.values(owner=secrets.token_bytes(OWNER_BYTES), deaths=table.c.deaths - 1))


def clear_crashes(connection: Connection, store: Store, partition: TopicPartition, owner: bytes) -> None:
    """Record that this owner got further than those that crashed before it."""
    _update(connection, store, partition, owner, **_NO_CRASHES)


def suspect(
    connection: Connection,
    store: Store,
    partition: TopicPartition,
    owner: bytes,
    suspects: Mapping[int, int],
) -> None:
    """Record which messages run alone, or began to run alone and left no trace, and how often."""
    _update(connection, store, partition, owner, suspects=json.dumps(suspects))


_NO_CRASHES: Final[dict[str, Any]] = {"deaths": 0, "suspects": "{}"}


def _update(connection: Connection, store: Store, partition: TopicPartition, owner: bytes, **values: Any) -> None:
    table = store.tables.partition_progress
    mine = and_(here(store, partition), table.c.owner == owner)
    connection.execute(update(table).where(mine).values(**values))


def count_owned(connection: Connection, store: Store, owners: Owners) -> int:
    """Return for how many of the partitions our token is still current."""
    c = store.tables.partition_progress.c
    mine = tuple_(c.topic, c.partition, c.owner).in_([(*partition, owner) for partition, owner in owners.items()])
    return int(connection.execute(select(func.count()).where(c.consumer == store.consumer, mine)).scalar_one())


def numbers(tables: Tables, consumer: int, partitions: Collection[TopicPartition]) -> list[int]:
    """Return the numbers of several partitions' locks, sorted."""
    return sorted(number(tables, consumer, partition) for partition in partitions)
