"""Gives up calls of `on_dead_letter` that no worker will ever make."""

from __future__ import annotations

from typing import Final

from sqlalchemy.orm import Session

from consumerkit.storage import audit
from consumerkit.storage.dead_letters.hooked import HookRows
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.isolation import connection_of
from consumerkit.storage.tables import Tables

BATCH: Final = 100


def give_up(session: Session, tables: Tables, consumer: int, *, note: str, by: str) -> list[int]:
    """Give up calls that are due, in the caller's transaction; return their letters, which stay as they are.

    A call that a worker is making, or makes again later, is not due, and stays.
    """
    dialect = dialect_for(session.get_bind().dialect.name, tables)
    connection = connection_of(session, dialect)
    letters = HookRows(tables, dialect, consumer).give_up_due(connection, by, note, BATCH)
    if letters:
        details = {"letters": letters, "note": note}
        audit.record(
            connection, tables, actor=by, action="give up calls of on_dead_letter", consumer=consumer, details=details
        )
    return letters


def later(session: Session, tables: Tables, consumer: int) -> int:
    """Return how many calls of a handler are not due yet."""
    dialect = dialect_for(session.get_bind().dialect.name, tables)
    return HookRows(tables, dialect, consumer).later(session.connection())
