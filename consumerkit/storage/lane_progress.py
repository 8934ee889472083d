"""The lanes: each transaction raises its lane's number by one, so that lost commits show.

If the database loses commits (a failover to a standby that lagged, a backup restored under a running worker), it shows
a lower number than the lane knows.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from sqlalchemy import Connection, delete, func, select, update

from consumerkit.storage.dialects.insertion import insert_if_new
from consumerkit.storage.store import Store

LANE_BYTES: Final = 16
LANE_KEPT: Final = 7 * 86_400.0
# Each change of a row leaves a version behind, which an old snapshot keeps. Measured beside an old
# snapshot after 11,000 transactions, an update reads 193 buffers, but 6 for a row that has changed
# some hundred times.
LANE_LENGTH: Final = 300


class LaneSequence(NamedTuple):
    """A lane's identity, and how many transactions it has made durable."""

    id: bytes
    sequence: int = 0

    @classmethod
    def new(cls) -> LaneSequence:
        """Return a lane that has not been seen before."""
        return cls(secrets.token_bytes(LANE_BYTES))

    @property
    def next(self) -> LaneSequence:
        """The same lane after one more transaction."""
        return self._replace(sequence=self.sequence + 1)

    @property
    def full(self) -> bool:
        """Whether its row has changed often enough: the next transaction is the first of another lane."""
        return self.sequence >= LANE_LENGTH


def move_on(connection: Connection, store: Store, lane: LaneSequence) -> bool:
    """Count one more transaction of a lane, in that transaction; return False unless the database has the same count.

    The database has a lower count if it has lost transactions, and a higher one if a transaction is durable that the
    lane took for rolled back. In both cases only the marks tell where to go on.
    """
    table = store.tables.lane_progress
    c = table.c
    if lane.sequence == 0:
        first = {"consumer": store.consumer, "lane": lane.id, "sequence": 1}
        return insert_if_new(connection, table, first, key=(c.consumer, c.lane), returning=c.sequence) is not None
    known = (c.consumer == store.consumer, c.lane == lane.id, c.sequence == lane.sequence)
    moved = update(table).where(*known).values(sequence=lane.sequence + 1, moved_at=func.now())
    return connection.execute(moved).rowcount == 1


def are_kept(connection: Connection, store: Store, lanes: Iterable[LaneSequence]) -> bool:
    """Return whether the database has everything that these lanes made durable; a lane may be about to move on."""
    known = {lane.id: lane.sequence for lane in lanes if lane.sequence}
    if not known:
        return True
    c = store.tables.lane_progress.c
    rows = connection.execute(select(c.lane, c.sequence).where(c.consumer == store.consumer, c.lane.in_(known)))
    found = {bytes(lane): sequence for lane, sequence in rows}
    return all(found.get(lane, -1) >= sequence for lane, sequence in known.items())


def forget(connection: Connection, store: Store, lanes: Collection[LaneSequence]) -> None:
    """Delete the rows of lanes that have ended, and of lanes that crashed processes left behind."""
    table = store.tables.lane_progress
    c = table.c
    ended = c.lane.in_([lane.id for lane in lanes])
    left = c.moved_at < store.dialect.in_seconds(-LANE_KEPT)
    connection.execute(delete(table).where(c.consumer == store.consumer, ended | left))


def drop(connection: Connection, store: Store, lanes: Collection[LaneSequence]) -> None:
    """Delete the rows of full lanes: the database is known to have their successors' transactions too."""
    if not lanes:
        return
    c = store.tables.lane_progress.c
    gone = delete(store.tables.lane_progress).where(
        c.consumer == store.consumer, c.lane.in_([lane.id for lane in lanes])
    )
    connection.execute(gone)


def touch(connection: Connection, store: Store, lanes: Iterable[LaneSequence]) -> None:
    """Renew the rows of lanes that have long been idle, so that they do not count as left behind."""
    table = store.tables.lane_progress
    ids = [lane.id for lane in lanes if lane.sequence]
    if ids:
        mine = (table.c.consumer == store.consumer, table.c.lane.in_(ids))
        connection.execute(update(table).where(*mine).values(moved_at=func.now()))
