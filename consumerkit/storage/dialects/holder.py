"""Who holds a message ID, on PostgreSQL: only an attempt to claim shows a claim that is not committed.

The trial claim runs within a savepoint that is rolled back and released. Nothing of it can be
committed, and its locks and settings end with it. A transaction that waits for the trial's row
continues at once.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, Table, insert, literal, select, text
from sqlalchemy.exc import DBAPIError

from consumerkit.handlers.message_id import DIGEST_BYTES
from consumerkit.outcome import Outcome
from consumerkit.storage.dialects.base import ClaimHolder
from consumerkit.storage.faults import sqlstate

# A standby's transactions are read-only. In a serializable transaction a write could fail others,
# or itself.
_MAY_TRY = text("""
    SELECT current_setting('transaction_read_only') = 'off'
       AND current_setting('transaction_isolation') <> 'serializable'
""")
_SAVEPOINT = text("SAVEPOINT consumerkit_holder")
_ROLLBACK = text("ROLLBACK TO SAVEPOINT consumerkit_holder")
# Without the release, the transaction would go on within the savepoint, one level deeper each time.
_RELEASE = text("RELEASE SAVEPOINT consumerkit_holder")
_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', '10ms', true)")

_LOCKED: Final = "55P03"
_TAKEN: Final = "23505"
_AUTOCOMMIT: Final = "25P01"
# The right to insert is missing, or the transaction became read-only after the check.
_MAY_NOT: Final = frozenset({"42501", "25006"})


def holder(connection: Connection, ledger: Table, consumer: int, digest: bytes) -> ClaimHolder:
    """Return who holds an ID; see `Dialect.holder`."""
    if not connection.execute(_MAY_TRY).scalar_one():
        return ClaimHolder.UNTOLD
    try:
        connection.execute(_SAVEPOINT)
    except DBAPIError as error:
        if sqlstate(error) == _AUTOCOMMIT:
            return ClaimHolder.UNTOLD
        raise
    try:
        return _tried(connection, ledger, consumer, digest)
    finally:
        # A connection that broke, as by a cancellation, ends the trial. More statements would hide
        # why it broke.
        if not connection.invalidated:
            connection.execute(_ROLLBACK)
            connection.execute(_RELEASE)


def _tried(connection: Connection, ledger: Table, consumer: int, digest: bytes) -> ClaimHolder:
    row = {
        "consumer": consumer,
        "digest": digest,
        "message_id": "?",
        "fingerprint": bytes(DIGEST_BYTES),
        "outcome": int(Outcome.PROCESSED),
    }
    nothing = select(*(literal(value, ledger.c[name].type) for name, value in row.items())).where(text("false"))
    connection.execute(_LOCK_TIMEOUT)
    # Lock the table separately: if another transaction holds that lock, as CREATE INDEX does, it
    # says nothing about the ID.
    if _state(connection, insert(ledger).from_select(list(row), nothing)) is not None:
        return ClaimHolder.UNTOLD
    state = _state(connection, insert(ledger).values(row))
    if state == _LOCKED:
        return ClaimHolder.OPEN
    if state == _TAKEN:
        return ClaimHolder.COMMITTED
    return ClaimHolder.NOBODY if state is None else ClaimHolder.UNTOLD


def _state(connection: Connection, statement: object) -> str | None:
    """Execute a statement; return None if it succeeded, else the SQLSTATE of the refusal."""
    try:
        connection.execute(statement)  # type: ignore[call-overload]
    except DBAPIError as error:
        state = sqlstate(error)
        if state in {_LOCKED, _TAKEN, *_MAY_NOT}:
            return state
        raise
    return None
