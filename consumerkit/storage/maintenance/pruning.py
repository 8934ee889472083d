"""What the ledger may forget, and how: in bounded portions, and without blocking other transactions.

Every message below a partition's mark is finished, and its ID is needed for resends only. A restart
delivers everything above the mark again, however old it is. So a handler's ledger keeps all that
was processed after the earliest `settled_at` of its partitions.

Before the first row goes, each partition's `forgotten_below` rises to its mark: a message below it
that the ledger does not know may be old or new. A rewind may take that back, or move a mark below
the one in the plan. So each portion checks again, and locks the partitions' rows against a rewind
until it commits.

Nothing here waits for a row that another transaction has locked, so it is never part of a deadlock:
a claim may wait until a deletion commits, a deletion never waits for a claim.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Row,
    Select,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.orm import Session

from consumerkit.message import TopicPartition
from consumerkit.outcome import Outcome
from consumerkit.storage import first_runs, steps
from consumerkit.storage.consumers import NO_TOPICS
from consumerkit.storage.dead_letters.letters import State
from consumerkit.storage.dialects import Dialect, Limits
from consumerkit.storage.first_runs import LatestTopic
from consumerkit.storage.isolation import begin
from consumerkit.storage.portions import portions
from consumerkit.storage.store import Store
from consumerkit.storage.tables import Tables

BATCH: Final = 5_000
_LIMITS: Final = Limits(statement=60.0, lock=5.0, idle=60.0)
_NEEDED: Final = (State.DEAD.value, State.REDRIVEN.value)


class HoldingPartition(NamedTuple):
    """A partition that stops its handler's ledger from forgetting what is old enough.

    Everything processed since `since` stays; None if no message of the partition is finished.
    """

    partition: TopicPartition
    since: datetime | None


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What may be forgotten of one handler at one moment.

    Attributes:
        handler: Its name.
        consumer: Its number.
        before: What was processed before this time may go; None means that nothing may.
        holders: The partitions that keep more than retention asks for, the one that keeps longest
            first.
        positioned: Whether any position of this handler is known.
        bounds: The offset of each partition below which message IDs will have been forgotten.
        topics: The topics that the handler consumed at that moment.
    """

    handler: str
    consumer: int
    before: datetime | None
    holders: tuple[HoldingPartition, ...]
    positioned: bool
    bounds: tuple[tuple[TopicPartition, int], ...]
    topics: tuple[str, ...]


class OutdatedPlan(Exception):
    """A position was moved back since, so the plan may no longer be carried out."""


class ForgottenBatch(NamedTuple):
    """How many rows were forgotten, and when the last of them was processed."""

    rows: int
    last: datetime | None


@dataclass(frozen=True, slots=True)
class PruneStatements:
    """The statements of forgetting; each method is the whole work of one transaction, which the caller commits."""

    tables: Tables
    dialect: Dialect

    def plans(
        self,
        session: Session,
        retention: float,
        handlers: Collection[str] | None = None,
        *,
        requests: bool = False,
        unpositioned: bool = False,
    ) -> list[PrunePlan]:
        """Return what may be forgotten of each handler, or of the named ones.

        Keys that do not come from messages go by age alone. Requests' keys stay for the retention
        stored with their name. The keys of jobs and the checkpoints of backfills go only if their
        name is given: a job or backfill runs again once they are forgotten.

        Args:
            session: The caller's.
            retention: Seconds for which a processed ID is remembered.
            handlers: Names; None means all that the database knows.
            requests: Also include the names of requests' keys, whatever `handlers` names.
            unpositioned: Forget by age alone what handlers without a known position processed.
        """
        c = self.tables.consumers.c
        query = select(c.id, c.name, c.topics, c.retention).order_by(c.name)
        named = c.topics != NO_TOPICS if handlers is None else c.name.in_(handlers)
        query = query.where(or_(named, c.retention.is_not(None)) if requests or handlers is None else named)
        old = session.execute(select(self._before(retention))).scalar_one()
        return [self._plan(session, row, old, unpositioned=unpositioned) for row in session.execute(query).all()]

    def _before(self, seconds: float) -> ColumnElement[datetime]:
        return type_coerce(self.dialect.in_seconds(-seconds), DateTime(timezone=True))

    def _plan(self, session: Session, consumer: Any, old: datetime, *, unpositioned: bool) -> PrunePlan:
        topics = json.loads(consumer.topics)
        if not topics:
            if consumer.retention is not None:
                old = session.execute(select(self._before(consumer.retention))).scalar_one()
            return PrunePlan(consumer.name, consumer.id, old, (), positioned=True, bounds=(), topics=())
        c = self.tables.partition_progress.c
        marked = session.execute(select(self.tables.partition_progress).where(c.consumer == consumer.id, c.mark >= 0))
        latest = first_runs.latest(session.connection(), Store(self.tables, self.dialect, consumer.id))
        rows = [row for row in marked.all() if not _is_gone(row, latest)]
        settled = {_place(row): row.settled_at for row in rows if row.topic in topics}
        holders = [HoldingPartition(place, since) for place, since in settled.items() if since is None or since < old]
        holders.sort(key=lambda one: (one.since is not None, one.since, one.partition))
        before: datetime | None = old
        if holders:
            before = holders[0].since
        elif not rows and not unpositioned:
            before = None
        bounds = tuple((_place(row), _bound(row, topics)) for row in rows)
        return PrunePlan(consumer.name, consumer.id, before, tuple(holders), bool(rows), bounds, tuple(topics))

    def oldest_letters(self, session: Session) -> dict[str, float]:
        """Return, by handler, for how many seconds its oldest dead letter has waited for a decision."""
        c, consumers = self.tables.dead_letters.c, self.tables.consumers.c
        rows = session.execute(
            select(consumers.name, self.dialect.seconds_since(func.min(c.dead_at)))
            .join_from(self.tables.dead_letters, self.tables.consumers, c.consumer == consumers.id)
            .where(c.state == State.DEAD.value)
            .group_by(consumers.name)
        )
        return {name: float(seconds) for name, seconds in rows}

    def count(self, session: Session, plan: PrunePlan) -> int:
        """Return how many IDs may be forgotten now."""
        if plan.before is None:
            return 0
        ledger = self.tables.processed_messages
        return int(session.execute(select(func.count()).select_from(ledger).where(self._old(plan))).scalar_one())

    def any(self, session: Session, plan: PrunePlan) -> bool:
        """Return whether there is anything to forget."""
        if plan.before is None:
            return False
        c = self.tables.processed_messages.c
        if session.execute(select(c.digest).where(self._old(plan)).limit(1)).first() is not None:
            return True
        return steps.has_orphans(session.connection(), self.tables, plan.consumer, plan.before)

    def promise(self, session: Session, plan: PrunePlan) -> bool:
        """Record the offsets below which the ledger will no longer know everything; call it before the first portion.

        Returns:
            False if a partition's row was in use: try again.

        Raises:
            OutdatedPlan: A mark was moved back since the plan was made.
        """
        table = self.tables.partition_progress
        c = table.c
        connection = begin(session, self.dialect, _LIMITS, "pruning")
        wanted = dict(plan.bounds)
        found = connection.execute(self._rows(plan).with_for_update(skip_locked=True)).all()
        for one in found:
            bound = wanted.pop(_place(one))
            if _bound(one, plan.topics) < bound:
                raise OutdatedPlan(f"the mark of {_place(one)} was moved back")
            row = and_(c.consumer == plan.consumer, c.topic == one.topic, c.partition == one.partition)
            connection.execute(update(table).where(row, c.forgotten_below < bound).values(forgotten_below=bound))
        return not wanted

    def forget(
        self, session: Session, plan: PrunePlan, after: datetime | None, limit: int = BATCH
    ) -> ForgottenBatch | None:
        """Forget the oldest IDs that may go, with their results.

        Args:
            session: The caller's.
            plan: What may go; `promise` has been committed.
            after: `last` of the previous portion, so that rows that stay are passed over once only.
            limit: The largest number of rows.

        Returns:
            None if another process is pruning, or a partition's row is in use.

        Raises:
            OutdatedPlan: A mark was moved back, or the promise was taken back; this portion deleted
                nothing.
        """
        assert plan.before is not None
        connection = begin(session, self.dialect, _LIMITS, "pruning")
        if not self.dialect.lock_pruning(connection) or not self._hold(connection, plan):
            return None
        ledger = self.tables.processed_messages
        c = ledger.c
        old = select(c.digest, c.processed_at).where(self._old(plan)).order_by(c.processed_at).limit(limit)
        if after is not None:
            old = old.where(c.processed_at >= after)
        rows = connection.execute(old.with_for_update(skip_locked=True, of=ledger)).all()
        self._delete(connection, plan.consumer, sorted(bytes(row.digest) for row in rows))
        if len(rows) < limit:
            steps.forget_orphans(connection, self.tables, plan.consumer, plan.before, limit)
        return ForgottenBatch(len(rows), rows[-1].processed_at if rows else None)

    def _hold(self, connection: Connection, plan: PrunePlan) -> bool:
        """Lock the plan's partitions against a rewind; return False if one of their rows is in use.

        The weakest lock is enough: it keeps out a rewind and a take-over, which lock the whole row,
        but not a mark.
        """
        rows = self._rows(plan)
        held = connection.execute(rows.with_for_update(read=True, key_share=True, skip_locked=True)).all()
        # Another try would never find a row that is gone.
        found = held if len(held) == len(plan.bounds) else connection.execute(rows).all()
        standing = {_place(row): min(_bound(row, plan.topics), row.forgotten_below) for row in found}
        for place, bound in plan.bounds:
            if standing.get(place, -1) < bound:
                raise OutdatedPlan(f"{place} does not stand where it did")
        return len(held) == len(plan.bounds)

    def _rows(self, plan: PrunePlan) -> Select[Any]:
        table = self.tables.partition_progress
        c, places = table.c, [place for place, _ in plan.bounds]
        return select(table).where(c.consumer == plan.consumer, tuple_(c.topic, c.partition).in_(places))

    def _old(self, plan: PrunePlan) -> ColumnElement[bool]:
        """Return which rows may go: processed ones, and dead ones that can never run again."""
        c, letter = self.tables.processed_messages.c, self.tables.dead_letters.c
        needed = exists().where(letter.consumer == c.consumer, letter.digest == c.digest, letter.state.in_(_NEEDED))
        gone = or_(c.outcome == int(Outcome.PROCESSED), and_(c.outcome == int(Outcome.DEAD), ~needed))
        return and_(c.consumer == plan.consumer, c.processed_at < plan.before, gone)

    def _delete(self, connection: Connection, consumer: int, digests: Sequence[bytes]) -> None:
        for some in portions(digests):
            steps.forget(connection, self.tables, consumer, some)
            for table in (self.tables.message_results, self.tables.processed_messages):
                connection.execute(delete(table).where(table.c.consumer == consumer, table.c.digest.in_(some)))


def _is_gone(row: Row[Any], latest: Mapping[str, LatestTopic]) -> bool:
    """Return whether a partition's topic was recreated with fewer partitions: it gets no more messages."""
    now = latest.get(row.topic)
    return now is not None and row.topic_id != now.topic_id and row.partition not in now.partitions


def _place(row: Row[Any]) -> TopicPartition:
    return TopicPartition(row.topic, row.partition)


def _bound(row: Row[Any], topics: Collection[str]) -> int:
    """Return the offset below which everything ever processed of a partition is known to lie.

    A topic that is no longer consumed holds nothing back. If its last owner died, what that owner
    processed above the mark lies below the end of its window.
    """
    if row.topic in topics or row.given_back:
        return int(row.mark)
    return max(int(row.mark), int(row.window_end or 0))
