"""How a transaction of ours begins: with limits, and in the isolation level that our statements rely on."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from consumerkit.storage.dialects import Dialect, Limits


def connection_of(session: Session, dialect: Dialect, **options: Any) -> Connection:
    """Return the session's connection, READ COMMITTED whatever the engine's default is.

    Args:
        session: A session that has executed nothing yet.
        dialect: The database's dialect.
        options: Further execution options.
    """
    level = dialect.isolation()
    isolation = {"isolation_level": level} if level else {}
    return session.connection(execution_options={**isolation, **options})


def begin(session: Session, dialect: Dialect, limits: Limits, token: str) -> Connection:
    """Begin a transaction that locks nothing for longer than its limits; return its connection.

    Args:
        session: A session that has executed nothing yet.
        dialect: The database's dialect.
        limits: How long the transaction may take on the server.
        token: Marks the transaction; see `Dialect.begin`.
    """
    connection = connection_of(session, dialect)
    dialect.begin(connection, limits, token)
    return connection
