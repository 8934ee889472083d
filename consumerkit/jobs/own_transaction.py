"""Tells who owns a session's transaction, and commits one of consumerkit's own."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin

from consumerkit.errors import InProgress, TransactionMisused
from consumerkit.storage.dialects import Dialect, dialect_for
from consumerkit.storage.keys import KeyLedger, is_busy
from consumerkit.storage.location import is_a_workers, located_for
from consumerkit.storage.tables import Tables

_BLOCKS: Final = "consumerkit.block"


class SessionTables(NamedTuple):
    """consumerkit's tables as a session finds them."""

    tables: Tables
    dialect: Dialect

    @property
    def keys(self) -> KeyLedger:
        """The statements on keys."""
        return KeyLedger(self.tables, self.dialect)


def found_for(session: Session, tables: Tables, label: str) -> SessionTables:
    """Return consumerkit's tables as the session finds them.

    Raises:
        ConfigurationError: The session does not find them.
        InProgress: On SQLite, another transaction wrote for too long.
    """
    try:
        located = located_for(session, tables)
    except DBAPIError as error:
        if is_busy(error):
            raise InProgress(f"{label}: another transaction is writing to the database") from error
        raise
    return SessionTables(located, dialect_for(session.connection().dialect.name, located))


def is_callers(session: Session) -> bool:
    """Tell whether the caller ends the transaction, by `session.begin()` or a savepoint, or a worker or outer block."""
    transaction = session.get_transaction()
    if transaction is None:
        return False
    began = transaction.origin is SessionTransactionOrigin.BEGIN
    is_outer_blocks = session.info.get(_BLOCKS) is transaction
    return began or is_outer_blocks or session.in_nested_transaction() or is_a_workers(session)


def mark(session: Session) -> None:
    """Mark the session's transaction as that of a block: a block within it is part of it."""
    session.info[_BLOCKS] = session.get_transaction()


def is_open(session: Session, savepoint: SessionTransaction) -> bool:
    """Tell whether a savepoint is open, whatever the block began within it."""
    transaction = session.get_nested_transaction()
    while transaction is not None and transaction is not savepoint:
        transaction = transaction.parent
    return transaction is not None


def misused(label: str) -> TransactionMisused:
    """Return the error of a block that ended consumerkit's transaction."""
    return TransactionMisused(
        f"{label}: the block committed or rolled back the session; the end of the block does that"
    )


def commit(session: Session, began: SessionTransaction, dialect: Dialect, label: str) -> None:
    """Commit the transaction that consumerkit began.

    Raises:
        TransactionMisused: Other code has ended it; whatever followed it is rolled back.
        DBAPIError: A statement failed and the block hid its error: COMMIT would silently roll back.
    """
    if session.get_transaction() is not began:
        session.rollback()
        raise misused(label)
    session.flush()
    dialect.probe(session.connection())
    session.commit()
