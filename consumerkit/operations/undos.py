"""Undos that wait: which there are, and giving them up where no worker will ever run them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Float, cast, func, select
from sqlalchemy.orm import Session

from consumerkit.storage import audit
from consumerkit.storage.dead_letters import undo_letters
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.isolation import connection_of
from consumerkit.storage.progress import OWNER_BYTES
from consumerkit.storage.step_values import StepState
from consumerkit.storage.tables import Tables
from consumerkit.storage.undoing import Undo, UndoRows

BATCH: Final = 100
_HELD: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """What `give_up` did in one transaction.

    Attributes:
        letters: The dead letters of the undos.
        without: How many undos have no letter, because the letter of their message is gone.
    """

    letters: tuple[int, ...] = ()
    without: int = 0


def waiting(session: Session, tables: Tables, handler: str | None, *, limit: int) -> Sequence[Any]:
    """Return the steps that wait to be undone, the first due first, without what they were called with."""
    c, consumers, letters = tables.message_steps.c, tables.consumers.c, tables.dead_letters.c
    dialect = dialect_for(session.connection().dialect.name, tables)
    late = cast(dialect.seconds_since(c.undo_at), Float).label("late")
    query = (
        select(
            consumers.name.label("handler"),
            letters.message_id,
            c.step,
            c.undo_at,
            late,
            c.undo_attempts.label("attempts"),
            c.dead_letter.label("letter"),
        )
        .join_from(tables.message_steps, tables.consumers, c.consumer == consumers.id)
        .outerjoin(tables.dead_letters, letters.id == c.dead_letter)
        .where(c.undo_at.is_not(None), c.state == StepState.UNDOING.value)
        .order_by(c.undo_at, consumers.name, c.step)
        .limit(limit)
    )
    return session.execute(query if handler is None else query.where(consumers.name == handler)).all()


def give_up(session: Session, tables: Tables, consumer: int, *, note: str, by: str) -> GivenUp | None:
    """Make dead letters of undos that are due, in the caller's transaction; None if none is due.

    An undo that a worker is calling, or tries again later, is not due, and stays. `consumerkit dead-letters` then
    decides on each letter, as on any whose reason is `undo_failed`.
    """
    dialect = dialect_for(session.get_bind().dialect.name, tables)
    connection = connection_of(session, dialect)
    rows, owner = UndoRows(tables, dialect, consumer), secrets.token_bytes(OWNER_BYTES)
    claimed = [one for steps in rows.claim(connection, owner, _HELD, BATCH).values() for one in steps]
    if not claimed:
        return None
    letters = [_give_up(session, rows, one, owner, f"given up by {by}: {note}") for one in claimed]
    made = tuple(number for number in letters if number is not None)
    details = {"letters": list(made), "undos": len(claimed), "note": note}
    audit.record(connection, tables, actor=by, action="give up undos", consumer=consumer, details=details)
    return GivenUp(letters=made, without=len(claimed) - len(made))


def _give_up(session: Session, rows: UndoRows, one: Undo, owner: bytes, why: str) -> int | None:
    connection = session.connection()
    dead = undo_letters.of(connection, rows.tables, one, why)
    if dead is not None:
        dead = replace(dead, error_type="GivenUp", attempts=one.attempts)
        dead = undo_letters.enter(connection, rows.tables, rows.consumer, dead)
    number = None if dead is None else dead.id
    rows.not_undone(connection, one, owner, number)
    return number


def later(session: Session, tables: Tables, consumer: int) -> int:
    """Return how many undos of a handler are not due yet."""
    c = tables.message_steps.c
    own = (c.consumer == consumer, c.undo_at.is_not(None), c.state == StepState.UNDOING.value)
    return int(session.execute(select(func.count()).select_from(tables.message_steps).where(*own)).scalar_one())
