"""Sessions for consumerkit's own work: not of the user's class, and durable whatever the user's hooks raise."""

from __future__ import annotations

import logging
from typing import Final

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker

IDLE: Final = 60.0
"""Seconds for which a transaction of ours may stay idle by default."""
_DURABLE: Final = "consumerkit.durable"
_IDLE: Final = "consumerkit.idle"
_LIMIT: Final = text("SELECT set_config('idle_in_transaction_session_timeout', :idle, true)")
_log = logging.getLogger(__name__)


def for_coroutines(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Return a maker of sessions for coroutines."""
    return async_sessionmaker(engine, expire_on_commit=False, info={_DURABLE: False})


def for_threads(engine: Engine) -> sessionmaker[Session]:
    """Return a maker of sessions for threads."""
    return sessionmaker(engine, expire_on_commit=False, info={_DURABLE: False})


def limit(session: Session, idle: float | None) -> None:
    """Make the server end the session's next transaction after this many seconds without activity.

    Otherwise a frozen process would keep its locks, and other transactions would wait, for as long
    as it is frozen.
    """
    session.info[_IDLE] = IDLE if idle is None else idle


def commit(session: Session) -> None:
    """Commit; a listener's error after the transaction is durable is only logged."""
    try:
        session.commit()
    except Exception as error:
        if not session.info.get(_DURABLE):
            # A listener failed before COMMIT was sent: the transaction is open, but SQLAlchemy
            # considers it ended.
            session.invalidate()
            raise
        _log.error("a listener of sessions failed after COMMIT; the transaction is durable: %s", type(error).__name__)


@event.listens_for(Session, "after_commit", insert=True)
def _after_commit(session: Session) -> None:
    if _DURABLE in session.info and not session.in_nested_transaction():
        session.info[_DURABLE] = True


@event.listens_for(Session, "after_begin")
def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if _IDLE in session.info and not transaction.nested and connection.dialect.name == "postgresql":
        connection.execute(_LIMIT, {"idle": f"{max(1, round(session.info[_IDLE] * 1000))}ms"})
