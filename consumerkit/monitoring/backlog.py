"""What waits in the database: measured now and then, since no event tells of what other processes parked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Float, cast, func, select
from sqlalchemy.orm import Session

from consumerkit.concurrency import wait_until_set
from consumerkit.storage.dead_letters.letters import State
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.parking.parked import Kind
from consumerkit.storage.tables import Tables
from consumerkit.worker import Worker

EVERY: Final = 30.0
"""Seconds between two measurements: each counts what is parked and dead, which grows with how much there is."""
_FIRST: Final = 1.0  # a worker that starts checks the tables first
_WITHIN: Final = 10.0
_HOLDING: Final = (Kind.HELD.value, Kind.RELEASED.value)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HandlerBacklog:
    """What waits for one handler; ages in seconds, on the database's clock, 0 where nothing waits."""

    handler: str
    parked: int = 0
    parked_due: int = 0
    parked_oldest_seconds: float = 0.0
    keys_held: int = 0
    dead_undecided: int = 0
    dead_oldest_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TopicBacklog:
    """What waits in the outbox for one topic."""

    topic: str
    waiting: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in the database for a worker's handlers, and in the outbox for anybody."""

    handlers: tuple[HandlerBacklog, ...]
    outbox: tuple[TopicBacklog, ...]


def measure(session: Session, tables: Tables, names: Sequence[str]) -> Backlog:
    """Return what waits, in a transaction of the caller's."""
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
                func.count().filter(~message).label("held"),
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
    handlers = [_handler(name, lot.get(number), letters.get(number)) for number, name in numbers.items()]
    query = select(outbox.topic, func.count(), age(func.min(outbox.created_at))).group_by(outbox.topic)
    topics = [TopicBacklog(topic, count, max(0.0, oldest)) for topic, count, oldest in session.execute(query)]
    return Backlog(tuple(handlers), tuple(topics))


def _handler(name: str, lot: Any, letters: Any) -> HandlerBacklog:
    return HandlerBacklog(
        name,
        parked=lot.messages if lot else 0,
        parked_due=lot.due if lot else 0,
        parked_oldest_seconds=max(0.0, lot.oldest or 0.0) if lot else 0.0,
        keys_held=lot.held if lot else 0,
        dead_undecided=letters.letters if letters else 0,
        dead_oldest_seconds=max(0.0, letters.oldest or 0.0) if letters else 0.0,
    )


async def keep_measuring(worker: Worker, tell: Callable[[Backlog], None], over: asyncio.Event) -> None:
    """Measure what waits every `EVERY` seconds until `over` is set; a measurement under way is finished."""
    names = [declared.name for declared in worker.declarations]
    failing = False
    await wait_until_set(over, _FIRST)
    while not over.is_set():
        try:
            tell(await worker.database.run(lambda session: measure(session, worker.tables, names), within=_WITHIN))
            failing = False
        except Exception as error:  # noqa: BLE001 - the gauges keep their last values, and the worker works on
            if not failing:
                what = type(error).__name__
                _log.warning("what waits in the database is not measured (%s); it is tried every %.0f s", what, EVERY)
            failing = True
        await wait_until_set(over, EVERY)
