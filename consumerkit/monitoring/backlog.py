"""Measures from time to time what waits in the database and in the topics; events report only this process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Float, Select, cast, func, select
from sqlalchemy.orm import Session

from consumerkit.concurrency import wait_until_set
from consumerkit.dead_letters.error_text import of_database
from consumerkit.message import TopicPartition
from consumerkit.monitoring.lag import Ends, Lag, Marks, surveyed
from consumerkit.storage.dead_letters.letters import State
from consumerkit.storage.dialects import Dialect, dialect_for
from consumerkit.storage.parking.parked import Kind
from consumerkit.storage.step_values import StepState
from consumerkit.storage.tables import Tables
from consumerkit.worker import Worker

EVERY: Final = 30.0
"""Seconds between two measurements: each takes longer, the more messages are parked and dead."""
_FIRST: Final = 1.0  # the worker first checks its tables
_WITHIN: Final = 10.0
_HOLDING: Final = (Kind.HELD.value, Kind.RELEASED.value)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HandlerBacklog:
    """What waits for one handler; ages are in seconds, and 0 where nothing waits.

    Attributes:
        handler: Its name.
        parked: Messages that wait for their next attempt, or behind one that does.
        parked_due: Parked messages that are due.
        parked_oldest_seconds: How long the oldest parked message has been parked.
        parked_due_oldest_seconds: How long the first due parked message has been due.
        keys_held: Keys that wait for a decision on a dead letter.
        keys_held_oldest_seconds: How long the first held key has waited.
        undos: Steps that wait to be undone.
        undos_due: Undos that are due.
        undos_due_oldest_seconds: How long the first due undo has been due.
        left_behind: Steps to be undone, and parked messages, that wait for code which the handler no
            longer has.
        dead_letter_calls: Dead letters that wait for the handler's `on_dead_letter`.
        dead_letter_calls_due: Those of them that are due.
        dead_letter_calls_due_oldest_seconds: How long the first due one has been due.
        dead_undecided: Dead letters that wait for a decision.
        dead_oldest_seconds: How long the oldest undecided dead letter has waited.
        lag: Messages in the topics that are not processed.
        lag_oldest_seconds: How long the first of these messages has been there, as far as this
            process has seen.
        surveyed: Whether the broker answered, so that `lag` is new.
        marks: The handler's positions.
    """

    handler: str
    parked: int = 0
    parked_due: int = 0
    parked_oldest_seconds: float = 0.0
    parked_due_oldest_seconds: float = 0.0
    keys_held: int = 0
    keys_held_oldest_seconds: float = 0.0
    undos: int = 0
    undos_due: int = 0
    undos_due_oldest_seconds: float = 0.0
    left_behind: int = 0
    dead_letter_calls: int = 0
    dead_letter_calls_due: int = 0
    dead_letter_calls_due_oldest_seconds: float = 0.0
    dead_undecided: int = 0
    dead_oldest_seconds: float = 0.0
    lag: int = 0
    lag_oldest_seconds: float = 0.0
    surveyed: bool = True
    marks: Marks = field(default_factory=dict, repr=False)

    @property
    def work_left(self) -> int:
        """All work that is left, as one number: lag, due parked messages, held keys, due undos and due calls."""
        return self.lag + self.parked_due + self.keys_held + self.undos_due + self.dead_letter_calls_due

    @property
    def work_left_oldest_seconds(self) -> float:
        """How long the oldest part of `work_left` has waited."""
        return max(
            self.lag_oldest_seconds,
            self.parked_due_oldest_seconds,
            self.keys_held_oldest_seconds,
            self.undos_due_oldest_seconds,
            self.dead_letter_calls_due_oldest_seconds,
        )


@dataclass(frozen=True, slots=True)
class TopicBacklog:
    """What waits in the outbox for one topic."""

    topic: str
    waiting: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for a worker's handlers, and what waits in the outbox for any topic.

    Attributes:
        handlers: Each handler's.
        outbox: Each topic's.
        left_behind: Rows of handlers that the worker does not have, due for a quarter of an hour.
    """

    handlers: tuple[HandlerBacklog, ...]
    outbox: tuple[TopicBacklog, ...]
    left_behind: int = 0


def measure(session: Session, tables: Tables, names: Sequence[str]) -> Backlog:
    """Return what waits in the database, read in the caller's transaction."""
    parked, dead, outbox = tables.parked_messages.c, tables.dead_letters.c, tables.outbox_messages.c
    dialect = dialect_for(session.connection().dialect.name, tables)
    message = parked.kind.not_in(_HOLDING)

    def age(moment: ColumnElement[Any]) -> ColumnElement[float]:
        return cast(dialect.seconds_since(moment), Float)

    known = select(tables.consumers.c.id, tables.consumers.c.name).where(tables.consumers.c.name.in_(names))
    numbers = {row.id: row.name for row in session.execute(known)}
    lot = {
        row.consumer: row
        for row in session.execute(
            select(
                parked.consumer,
                func.count().filter(message).label("messages"),
                func.count().filter(message, parked.due_at <= dialect.in_seconds(0.0)).label("due"),
                age(func.min(parked.parked_at).filter(message)).label("oldest"),
                age(func.min(parked.due_at).filter(message, parked.due_at <= dialect.in_seconds(0.0))).label("overdue"),
                func.count().filter(~message).label("held"),
                age(func.min(parked.parked_at).filter(~message)).label("held_for"),
            )
            .where(parked.consumer.in_(numbers))
            .group_by(parked.consumer)
        )
    }
    letters = {
        row.consumer: row
        for row in session.execute(
            select(dead.consumer, func.count().label("letters"), age(func.min(dead.dead_at)).label("oldest"))
            .where(dead.consumer.in_(numbers), dead.state == State.DEAD.value)
            .group_by(dead.consumer)
        )
    }
    undos = {row.consumer: row for row in session.execute(_undos(tables, dialect, numbers))}
    calls = {row.consumer: row for row in session.execute(_calls(tables, dialect, numbers))}
    marks = _marks(session, tables, numbers)
    handlers = [
        _handler(name, lot.get(number), letters.get(number), undos.get(number), calls.get(number), marks[number])
        for number, name in numbers.items()
    ]
    query = select(outbox.topic, func.count(), age(func.min(outbox.created_at))).group_by(outbox.topic)
    topics = [TopicBacklog(topic, count, max(0.0, oldest)) for topic, count, oldest in session.execute(query)]
    return Backlog(tuple(handlers), tuple(topics))


def _undos(tables: Tables, dialect: Dialect, numbers: Collection[int]) -> Select[Any]:
    c = tables.message_steps.c
    return _waiting(dialect, c.consumer, c.undo_at, numbers).where(c.state == StepState.UNDOING.value)


def _calls(tables: Tables, dialect: Dialect, numbers: Collection[int]) -> Select[Any]:
    c = tables.dead_letters.c
    return _waiting(dialect, c.consumer, c.hook_at, numbers)


def _waiting(dialect: Dialect, consumer: Column[Any], at: Column[Any], numbers: Collection[int]) -> Select[Any]:
    """Return how many rows have a time, how many are due, and for how long the first one, by handler.

    The index on both columns holds only the rows that wait.
    """
    due = at <= dialect.in_seconds(0.0)
    overdue: ColumnElement[float] = cast(dialect.seconds_since(func.min(at).filter(due)), Float)
    return (
        select(consumer, func.count().label("rows"), func.count().filter(due).label("due"), overdue.label("overdue"))
        .where(consumer.in_(numbers), at.is_not(None))
        .group_by(consumer)
    )


def _marks(session: Session, tables: Tables, numbers: Collection[int]) -> dict[int, dict[TopicPartition, int]]:
    c = tables.partition_progress.c
    found: dict[int, dict[TopicPartition, int]] = {number: {} for number in numbers}
    query = select(c.consumer, c.topic, c.partition, c.mark).where(c.consumer.in_(numbers), c.mark.is_not(None))
    for consumer, topic, partition, mark in session.execute(query):
        found[consumer][TopicPartition(topic, partition)] = mark
    return found


def _handler(name: str, lot: Any, letters: Any, undos: Any, calls: Any, marks: Marks) -> HandlerBacklog:
    found = HandlerBacklog(name, marks=marks)
    if lot:
        found = replace(
            found,
            parked=lot.messages,
            parked_due=lot.due,
            parked_oldest_seconds=max(0.0, lot.oldest or 0.0),
            parked_due_oldest_seconds=max(0.0, lot.overdue or 0.0),
            keys_held=lot.held,
            keys_held_oldest_seconds=max(0.0, lot.held_for or 0.0),
        )
    if letters:
        oldest = max(0.0, letters.oldest or 0.0)
        found = replace(found, dead_undecided=letters.letters, dead_oldest_seconds=oldest)
    if undos:
        overdue = max(0.0, undos.overdue or 0.0)
        found = replace(found, undos=undos.rows, undos_due=undos.due, undos_due_oldest_seconds=overdue)
    if calls:
        found = replace(
            found,
            dead_letter_calls=calls.rows,
            dead_letter_calls_due=calls.due,
            dead_letter_calls_due_oldest_seconds=max(0.0, calls.overdue or 0.0),
        )
    return found


class Measuring:
    """Measures what waits for a worker's handlers, in the database and in the topics."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._ends = Ends()
        self._lags: dict[str, Lag] = {}

    async def measure(self) -> Backlog:
        """Return what waits. Where the broker does not answer, the lag keeps its last value, and is not `surveyed`.

        Raises:
            Exception: The database does not answer.
        """
        worker = self._worker
        names = [declared.name for declared in worker.declarations]
        backlog = await worker.database.run(lambda session: measure(session, worker.tables, names), within=_WITHIN)
        told = [(one, await self._look(one)) for one in backlog.handlers]
        left = worker.left_behind()
        handlers = [
            replace(
                one,
                lag=lag.messages,
                lag_oldest_seconds=lag.oldest_seconds,
                left_behind=left.get(one.handler, 0),
                surveyed=surveyed,
            )
            for one, surveyed in told
            for lag in (self._lags.get(one.handler, Lag()),)
        ]
        return replace(backlog, handlers=tuple(handlers), left_behind=left.get("", 0))

    async def _look(self, one: HandlerBacklog) -> bool:
        """Measure a handler's lag; return whether the broker answered about all topics."""
        surveys = await self._worker.surveys(one.handler)
        (declared,) = [declared for declared in self._worker.declarations if declared.name == one.handler]
        if len(surveys) < len(declared.topics):
            return False
        from_start, now = declared.start_from == "earliest", time.monotonic()
        self._lags[one.handler] = self._ends.lag(
            one.handler, one.marks, surveyed(declared.topics, surveys), from_start=from_start, now=now
        )
        return True


async def keep_measuring(worker: Worker, tell: Callable[[Backlog], None], over: asyncio.Event) -> None:
    """Measure what waits every `EVERY` seconds until `over` is set; a measurement under way is finished."""
    measuring = Measuring(worker)
    failing = False
    await wait_until_set(over, _FIRST)
    while not over.is_set():
        try:
            tell(await measuring.measure())
            failing = False
        except Exception as error:  # noqa: BLE001 - the gauges keep their last values, and the worker continues
            if not failing:
                what = of_database(error)
                _log.warning("what waits in the database is not measured (%s); next try in %.0f s", what, EVERY)
            failing = True
        await wait_until_set(over, EVERY)
