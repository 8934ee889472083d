"""Sessions for what consumerkit does for itself: of no class of the user's, and durable whatever their hooks raise."""

from __future__ import annotations

import logging
from typing import Final

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker

IDLE: Final = 60.0
"""Seconds for which a transaction of ours may stand idle, where nothing else is asked for."""
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
    """Have the server end the session's next transaction once nothing of it is heard for so many seconds.

    The locks of a process that is frozen would otherwise keep the others waiting for as long as it is.
    """
    session.info[_IDLE] = IDLE if idle is None else idle


def commit(session: Session) -> None:
    """Commit; an error of a listener that comes once the transaction is durable is only logged."""
    try:
        session.commit()
    except Exception as error:
        if not session.info.get(_DURABLE):
            # A listener failed before COMMIT was sent: the transaction is open, and SQLAlchemy takes it for ended.
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
