"""Plans a run: which partitions have dead letters of a selection, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from consumerkit.errors import StartError
from consumerkit.handlers.handler import Ordering
from consumerkit.message import TopicPartition
from consumerkit.redrive.decision import RedriveResult
from consumerkit.storage import consumers
from consumerkit.storage.dead_letters.letters import State
from consumerkit.storage.dead_letters.selection import Selection
from consumerkit.storage.tables import Tables


@dataclass(frozen=True, slots=True)
class PartitionLetters:
    """One partition of one topic, with a handler's dead letters; a recreated topic counts as another one.

    Attributes:
        consumer, handler: The handler's number and name.
        ordering: Its ordering at its last start; None if it is unknown.
        name: Topic and partition.
        topic_id: The topic's ID.
        letters: How many are chosen.
        ids: The chosen letters, if the selection names letters; else None.
    """

    consumer: int
    handler: str
    ordering: Ordering | None
    name: TopicPartition
    topic_id: str
    letters: int
    ids: tuple[int, ...] | None = None

    def holds(self, tables: Tables) -> ColumnElement[bool]:
        """Return the condition on the rows of `dead_letters`."""
        c = tables.dead_letters.c
        return and_(
            c.consumer == self.consumer,
            c.topic == self.name.topic,
            c.topic_id == self.topic_id,
            c.partition == self.name.partition,
        )


@dataclass(frozen=True, slots=True)
class RedrivePlan:
    """The work of one run.

    Attributes:
        logs: In the order of the run; for a recreated topic, the older one comes first.
        ceiling: The highest ID; later dead letters belong to another run.
        left: Requested IDs that are not dead letters now.
    """

    logs: tuple[PartitionLetters, ...]
    ceiling: int
    left: dict[int, RedriveResult]

    @property
    def letters(self) -> int:
        """How many letters the run looks at."""
        return sum(log.letters for log in self.logs)


def planned(session: Session, tables: Tables, selection: Selection) -> RedrivePlan:
    """Return the plan of a run.

    Raises:
        StartError: No handler has the given name, or no letter has the given ID `like`.
    """
    c, names = tables.dead_letters.c, tables.consumers.c
    check(session, tables, selection)
    at = (c.consumer, names.name, names.ordering, c.topic, c.topic_id, c.partition)
    rows = session.execute(
        select(*at, func.count().label("letters"), func.max(c.id).label("newest"))
        .join_from(tables.dead_letters, tables.consumers, c.consumer == names.id)
        .where(selection.where(tables), c.state == State.DEAD.value)
        .group_by(*at)
        .order_by(names.name, c.topic, c.partition, func.min(c.id))
    ).all()
    own = _ids_by_log(session, tables, selection)
    logs = tuple(_log(row, own) for row in rows)
    return RedrivePlan(logs, max((row.newest for row in rows), default=0), _left(session, tables, selection))


Place = tuple[int, str, str, int]


def _ids_by_log(session: Session, tables: Tables, selection: Selection) -> dict[Place, list[int]] | None:
    """Return the selection's letters by their places, so that each partition's query names only its own letters."""
    if selection.ids is None:
        return None
    c = tables.dead_letters.c
    found: dict[Place, list[int]] = {}
    for row in session.execute(
        select(c.id, c.consumer, c.topic, c.topic_id, c.partition).where(c.id.in_(selection.ids))
    ):
        found.setdefault((row.consumer, row.topic, row.topic_id, row.partition), []).append(row.id)
    return found


def _log(row: Any, own: dict[Place, list[int]] | None) -> PartitionLetters:
    ordering = None if row.ordering is None else Ordering(row.ordering)
    name = TopicPartition(row.topic, row.partition)
    ids = None if own is None else tuple(own[(row.consumer, row.topic, row.topic_id, row.partition)])
    return PartitionLetters(row.consumer, row.name, ordering, name, row.topic_id, row.letters, ids)


def _left(session: Session, tables: Tables, selection: Selection) -> dict[int, RedriveResult]:
    if selection.ids is None:
        return {}
    c = tables.dead_letters.c
    states = {row.id: row.state for row in session.execute(select(c.id, c.state).where(c.id.in_(selection.ids)))}
    left = {number: RedriveResult.NOT_DEAD for number, state in states.items() if state != State.DEAD}
    return left | {number: RedriveResult.UNKNOWN for number in selection.ids if number not in states}


def check(session: Session, tables: Tables, selection: Selection) -> None:
    """Refuse a mistyped name or ID, which would look like a selection without letters.

    Raises:
        StartError: No handler has the given name, or no letter has the given ID `like`.
    """
    if selection.handler is not None:
        consumers.known(session.connection(), tables, selection.handler)
    letters = tables.dead_letters.c.id
    if selection.like is not None and session.scalar(select(letters).where(letters == selection.like)) is None:
        raise StartError(
            f"no dead letter has the ID {selection.like}; see `consumerkit dead-letters groups` for one ID of each "
            "group"
        )
