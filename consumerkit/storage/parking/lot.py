"""The parking lot: messages that wait for their next attempt, and those that wait behind them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, takewhile
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Update,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)

from consumerkit.message import TopicPartition
from consumerkit.storage.origins import Origin, origin
from consumerkit.storage.parking import heads
from consumerkit.storage.parking.parked import IDENTITY, Kind, ParkedMessage, key_digest, parked_in, plain, row_of
from consumerkit.storage.parking.places import places
from consumerkit.storage.payload import sealed
from consumerkit.storage.portions import portions
from consumerkit.storage.store import Store


class ParkedPlace(NamedTuple):
    """Where a message is parked."""

    partition: TopicPartition
    key: bytes | None
    number: int


@dataclass(frozen=True)
class ParkingLot(Store):
    """One consumer's parked messages; every method works in the caller's transaction.

    The statements of an attempt are built once, since building them takes longer than executing
    them.
    """

    def park(
        self, connection: Connection, parked: Sequence[ParkedMessage], *, any_key: bool = False
    ) -> dict[Origin, int]:
        """Add messages, in order; return their numbers, by their origin in the log.

        With `any_key`, a message without a due time waits behind all parked messages of its
        partition.
        """
        if not parked:
            return {}
        placed = places(self, connection, parked)
        numbers = self.add(connection, placed.rows, placed.found, any_key=any_key)
        return {origin(one.message): number for one, number in zip(parked, numbers, strict=True)}

    def add(
        self, connection: Connection, parked: Sequence[ParkedMessage], found: Mapping[Origin, int], *, any_key: bool
    ) -> list[int]:
        """Add the messages that were not `found` in the lot; return the numbers of all, in order."""
        c = self.tables.parked_messages.c
        statement = insert(self.tables.parked_messages).returning(c.id, c.topic_id, c.partition, c.offset)
        numbers = dict(found)
        new = [one for one in parked if origin(one.message) not in numbers]
        for waits, some in groupby(new, lambda one: one.wait is None):
            if waits:
                rows = list(connection.execute(statement, [self.row(one) for one in some]))
                numbers |= {(row.topic_id, row.partition, row.offset): row.id for row in rows}
                continue
            for one in some:
                due = self.dialect.in_seconds(one.wait or 0.0)
                row = connection.execute(statement.values(due_at=due, **self.row(one))).one()
                numbers[origin(one.message)] = row.id
        waiting = [numbers[origin(one.message)] for one in new if one.wait is None]
        self.wake_heads(connection, waiting, any_key=any_key)
        return [numbers[origin(one.message)] for one in parked]

    def wake_heads(self, connection: Connection, numbers: Sequence[int], *, any_key: bool) -> None:
        """Make a message due that was parked to wait behind another and now stands first: the other is gone.

        A row without a due time and without a row before it would never be found.
        """
        if numbers:
            partitions = heads.first_of_partition(self.tables, self.consumer, numbers)
            self._wake(connection, numbers, partitions if any_key else heads.first_of_key(self.tables))

    def _wake(self, connection: Connection, numbers: Sequence[int], first: ColumnElement[bool] | None = None) -> None:
        """Make rows due that have no due time, unless they stand for a dead message."""
        table = self.tables.parked_messages
        due = update(table).where(table.c.id.in_(numbers), table.c.due_at.is_(None), self._may_run())
        if first is not None:
            due = due.where(first)
        connection.execute(due.values(due_at=self.dialect.in_seconds(0.0)))

    def row(self, one: ParkedMessage) -> dict[str, Any]:
        """Return the columns of a message without its due time, to insert a row or to replace another one's."""
        return {"sealed": False, **sealed(self.tables.sealer, {"consumer": self.consumer, **row_of(one)})}

    def lock(self, connection: Connection, parked: ParkedMessage) -> bool | None:
        """Lock a parked message for this transaction.

        Returns:
            Whether the row is unchanged and due; None if it is no longer in the lot.
        """
        found = connection.execute(self._locking[parked.wait is None], _as_read(parked)).one_or_none()
        return None if found is None else bool(found.same)

    @cached_property
    def _locking(self) -> dict[bool, Select[Any]]:
        """The statement of `lock`, by whether the message waited behind another."""
        here = self.tables.parked_messages.c.id == bindparam("read_id")
        return {waits: select(self._same(waits).label("same")).where(here).with_for_update() for waits in (False, True)}

    def _same(self, waits: bool) -> ColumnElement[bool]:
        """Return the condition that a row is as it was read: not tried since, due, and without a new ID."""
        c = self.tables.parked_messages.c
        return and_(
            c.kind == bindparam("read_kind"),
            c.attempts == bindparam("read_attempts"),
            c.digest.is_not_distinct_from(bindparam("read_digest", type_=c.digest.type)),
            c.due_at.is_(None) if waits else c.due_at <= self.dialect.in_seconds(0.0),
        )

    def postpone(self, connection: Connection, read: ParkedMessage, parked: ParkedMessage) -> bool:
        """Record the outcome of an attempt and the time of the next, and lock the row as `lock` does.

        Returns:
            False if the row changed since it was `read`: nothing that was written since is
            overwritten.
        """
        values = {name: value for name, value in row_of(parked).items() if name in _CHANGING}
        due = None if parked.wait is None else self.dialect.in_seconds(parked.wait)
        statement = self._changing[read.wait is None].values(due_at=due)
        return connection.execute(statement, {**values, "deliveries": 0, **_as_read(read)}).rowcount == 1

    @cached_property
    def _changing(self) -> dict[bool, Update]:
        """An update of a message that is as it was read, by whether it waited behind another."""
        table = self.tables.parked_messages
        here = table.c.id == bindparam("read_id")
        return {waits: update(table).where(here, self._same(waits)) for waits in (False, True)}

    def deliver(self, connection: Connection, parked: ParkedMessage, *, begins: bool) -> None:
        """Record that a run begins, unless `lock` will refuse it, or that the process survived the run.

        `postpone` takes it back too, as does leaving the lot.
        """
        deliveries = self.tables.parked_messages.c.deliveries
        statement = self._changing[parked.wait is None].values(deliveries=deliveries + (1 if begins else -1))
        connection.execute(statement, _as_read(parked))

    def hold(self, connection: Connection, held: ParkedMessage) -> None:
        """Turn a dead message into a row that makes the later messages of its key wait.

        A row with a `wait` stays only until the partition's owner, which blocks the key in memory,
        takes it out.
        """
        table = self.tables.parked_messages
        statement = update(table).where(table.c.id == held.id)
        due = None if held.wait is None else self.dialect.in_seconds(held.wait)
        connection.execute(statement.values(due_at=due, deliveries=0, **self.row(held)))

    def read(self, connection: Connection, numbers: Sequence[int]) -> list[ParkedMessage]:
        """Return messages, in order, by their numbers."""
        c = self.tables.parked_messages.c
        rows = connection.execute(self._select().where(c.id.in_(numbers)).order_by(c.id))
        return [parked_in(row, self.tables.sealer) for row in rows]

    def remove(self, connection: Connection, numbers: Sequence[int]) -> set[int]:
        """Remove decided messages; return the numbers of those that were there."""
        table = self.tables.parked_messages
        gone = connection.execute(delete(table).where(table.c.id.in_(numbers)).returning(table.c.id))
        return {number for (number,) in gone}

    def promote(self, connection: Connection, gone: ParkedMessage, *, any_key: bool) -> None:
        """Make the message due that waited behind `gone`; after a crash the next owner finds it."""
        table = self.tables.parked_messages
        message = gone.message
        if not any_key and message.key is None:
            return
        first = self._of(select(func.min(table.c.id)), [TopicPartition(message.topic, message.partition)])
        if not any_key:
            first = first.where(table.c.key_digest == key_digest(message.key))
        connection.execute(
            update(table)
            .where(table.c.id == first.scalar_subquery(), table.c.due_at.is_(None), self._may_run())
            .values(due_at=self.dialect.in_seconds(0.0))
        )

    def places(self, connection: Connection, digests: Sequence[bytes]) -> list[ParkedPlace]:
        """Return where messages of these IDs are parked. Excludes redriven rows: the owner does not track them."""
        c = self.tables.parked_messages.c
        query = select(c.topic, c.partition, c.key, c.id).where(c.consumer == self.consumer, c.digest.in_(digests))
        query = query.where(c.dead_letter.is_(None))
        return [
            ParkedPlace(TopicPartition(row.topic, row.partition), plain(row.key), row.id)
            for row in connection.execute(query)
        ]

    def load(
        self, connection: Connection, partitions: Collection[TopicPartition], *, any_key: bool = False
    ) -> dict[TopicPartition, dict[bytes | None, set[int]]]:
        """Return the numbers of partitions' parked messages, by key, under the partitions' fences.

        Every message that stands first in the new owner's order is made due: it may have been
        parked behind others in another order, and no owner would promote it. The rows are read
        once, so the cost grows with their number.
        """
        if not partitions:
            return {}
        c = self.tables.parked_messages.c
        stuck = and_(c.due_at.is_(None), self._may_run()).label("stuck")
        query = self._of(select(c.topic, c.partition, c.key, c.id, stuck), partitions)
        rows: dict[TopicPartition, list[tuple[bytes | None, int, bool]]] = {at: [] for at in partitions}
        for topic, partition, *row in connection.execute(query.order_by(c.id)):
            rows[TopicPartition(topic, partition)].append(tuple(row))
        found, waiting = {}, []
        for at, some in rows.items():
            found[at], stuck_there = heads.by_key(some, any_key=any_key)
            waiting += stuck_there
        for numbers in portions(waiting):
            self._wake(connection, numbers)
        return found

    def due(
        self,
        connection: Connection,
        partitions: Collection[TopicPartition],
        limit: int,
        *,
        without: Collection[int],
        after: ParkedMessage | None = None,
    ) -> list[ParkedMessage]:
        """Return due messages of these partitions, the longest overdue first, without the given numbers.

        With `after`, returns only messages that were due later than that one.
        """
        c = self.tables.parked_messages.c
        query = self._of(self._select(), partitions).where(c.due_at <= self.dialect.in_seconds(0.0))
        if without:
            query = query.where(c.id.not_in(without))
        if after is not None:
            query = query.where(tuple_(c.due_at, c.id) > tuple_(literal(after.due_at, c.due_at.type), after.id))
        rows = connection.execute(query.order_by(c.due_at, c.id).limit(limit))
        return [parked_in(row, self.tables.sealer) for row in rows]

    def heads(
        self, connection: Connection, partition: TopicPartition, key: bytes | None, limit: int, *, any_key: bool
    ) -> list[ParkedMessage]:
        """Return the first messages of a key (or of the whole partition), in order, with their `wait`.

        A message that waited behind another has `wait` None, and is due at once when it is the
        first. Excludes messages behind a dead message that holds the key.
        """
        c = self.tables.parked_messages.c
        query = self._of(self._select(), [partition]).order_by(c.id).limit(limit)
        if not any_key:
            query = query.where(c.key_digest == key_digest(key))
        found = [parked_in(row, self.tables.sealer) for row in connection.execute(query)]
        return list(takewhile(lambda one: one.kind is not Kind.HELD, found))

    def next_due(
        self, connection: Connection, partitions: Collection[TopicPartition], *, without: Collection[int]
    ) -> float | None:
        """Return in how many seconds the next message of these partitions is due, without the given numbers."""
        c = self.tables.parked_messages.c
        query = self._of(select(self.dialect.seconds_since(func.min(c.due_at))), partitions)
        if without:
            query = query.where(c.id.not_in(without))
        late = connection.execute(query).scalar_one()
        return None if late is None else -float(late)

    def _may_run(self) -> ColumnElement[bool]:
        return self.tables.parked_messages.c.kind != Kind.HELD.value

    def _select(self) -> Select[Any]:
        table = self.tables.parked_messages
        c = table.c
        failing_for: ColumnElement[Any] = self.dialect.seconds_since(c.first_failed_at)
        wait: ColumnElement[Any] = self.dialect.seconds_since(c.due_at)
        return select(table, failing_for.label("failing_for"), wait.label("late"))

    def _of(self, query: Select[Any], partitions: Collection[TopicPartition]) -> Select[Any]:
        c = self.tables.parked_messages.c
        return query.where(c.consumer == self.consumer, tuple_(c.topic, c.partition).in_([*map(tuple, partitions)]))


def _as_read(parked: ParkedMessage) -> dict[str, Any]:
    """Return the parameters by which a statement finds a message in the state in which it was read."""
    return {
        "read_id": parked.id,
        "read_kind": parked.kind.value,
        "read_attempts": parked.attempts,
        "read_digest": parked.digest,
    }


_CHANGING = IDENTITY | {"kind", "attempts", "first_failed_at", "error_type", "error", "stack"}
