"""Classifies a database error by SQLSTATE and connection state, never by class or text.

Drivers disagree on classes: the same lost connection or read-only server is an OperationalError, an
InternalError or a DBAPIError.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import suppress
from enum import Enum

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from consumerkit.error_tree import all_in, is_a


class Fault(Enum):
    """What to do about an error."""

    CONNECTION = "the database is gone or read-only: take a new connection and run the transaction again"
    CONFLICT = "another transaction was in the way: run this one again"
    CAPACITY = "the database is full or overloaded: wait"
    DEPLOY = "a table, column or right is missing: stop, a person must act"
    SUSPECT = "the message's own or one of all messages: another message shows which"
    PRESENT = "an object is there already: run the message by itself, on a connection without what others left there"
    UNFIT = "the session cannot hold one transaction: pause, a person must act"
    HANDLER = "the handler's own"


_BY_CLASS = {
    "08": Fault.CONNECTION,  # connection_exception; asyncpg reports 08003 whatever ended the session
    # invalid_authorization_specification: a login that worked once works again when both sides
    # have the new password.
    "28": Fault.CONNECTION,
    "40": Fault.CONFLICT,  # serialization_failure, deadlock_detected
    "42": Fault.DEPLOY,  # a missing table, column, function or right
    "53": Fault.CAPACITY,  # disk_full, out_of_memory, configuration_limit_exceeded
    "57": Fault.CONNECTION,  # admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout
    "58": Fault.CAPACITY,  # system_error, io_error
}
_BY_STATE = {
    "25006": Fault.CONNECTION,  # read_only_sql_transaction: this server is no longer the primary
    "25P03": Fault.CONNECTION,  # idle_in_transaction_session_timeout
    "26000": Fault.CONNECTION,  # invalid_sql_statement_name: a pooler gave us a session without our prepared statements
    "3D000": Fault.CONNECTION,  # invalid_catalog_name: it existed at the start, so a restore is probably running
    "3F000": Fault.DEPLOY,  # invalid_schema_name
    "53300": Fault.CONNECTION,  # too_many_connections, of the server, the database or the role
    "55P03": Fault.CONFLICT,  # lock_not_available
    "57014": Fault.CAPACITY,  # query_canceled: statement_timeout
    "XX001": Fault.CAPACITY,  # data_corrupted
    "XX002": Fault.CAPACITY,  # index_corrupted
    # Within class 42, an unfit cast or operator comes from bad data, so it is the handler's.
    "42804": Fault.HANDLER,  # datatype_mismatch
    "42846": Fault.HANDLER,  # cannot_coerce
    # Another message of the transaction, or an earlier one on the connection, made these objects.
    "42P03": Fault.PRESENT,  # duplicate_cursor
    "42P05": Fault.PRESENT,  # duplicate_prepared_statement
    "42P06": Fault.PRESENT,  # duplicate_schema
    "42P07": Fault.PRESENT,  # duplicate_table
    "42710": Fault.PRESENT,  # duplicate_object
    "42723": Fault.PRESENT,  # duplicate_function
}
# The places where PL/pgSQL, PL/Python, PL/Perl and PL/Tcl raise errors that their code asks for.
_RAISERS = frozenset({"exec_stmt_raise", "PLy_output", "do_util_elog", "plperl_util_elog", "pltcl_elog"})
_BY_SQLITE_CODE = {
    sqlite3.SQLITE_BUSY: Fault.CONFLICT,
    sqlite3.SQLITE_LOCKED: Fault.CONFLICT,
    sqlite3.SQLITE_FULL: Fault.CAPACITY,
    sqlite3.SQLITE_IOERR: Fault.CAPACITY,
    sqlite3.SQLITE_NOMEM: Fault.CAPACITY,
    sqlite3.SQLITE_CANTOPEN: Fault.CONNECTION,
    sqlite3.SQLITE_READONLY: Fault.CONNECTION,
    sqlite3.SQLITE_NOTADB: Fault.DEPLOY,
}
_SQLITE_MISTAKE = re.compile(
    r"(no such (?:table|column|function|index|view))|table \S+ has no column|near \".*\": syntax error"
)
_SQLITE_PRESENT = re.compile(
    r"(?:table|index|view|trigger) .* already exists$|there is already an? (?:table|index) named "
)


def fault_of(error: BaseException, *, in_handler: bool, alone: bool = False) -> Fault:
    """Return whose fault an error is, including its causes and the members of an exception group.

    Args:
        error: What was raised.
        in_handler: Whether the user's code ran. Outside it, a failing socket can only be the
            database's.
        alone: Whether to ignore its causes and members.
    """
    if alone:
        return _fault(error, in_handler)
    found = (_fault(one, in_handler) for one in all_in(error))
    return next((fault for fault in found if fault is not Fault.HANDLER), Fault.HANDLER)


def _fault(error: BaseException, in_handler: bool) -> Fault:
    if is_a(error, PoolTimeout):
        return Fault.CAPACITY
    if is_a(error, PendingRollbackError):
        # The session raises this after the handler swallowed an error. The code is that of a lost
        # connection.
        return Fault.CONNECTION if error.code == "8s2b" else Fault.HANDLER
    if is_a(error, DBAPIError):
        return _database_fault(error)
    outside = not in_handler and issubclass(type(error), OSError | TimeoutError)
    return Fault.CONNECTION if outside else Fault.HANDLER


def _database_fault(error: DBAPIError) -> Fault:
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_fault(error.orig)
    if error.connection_invalidated:
        return Fault.CONNECTION
    if (state := sqlstate(error)) is not None:
        return _by_state(state, error)
    # An error that the driver itself raised has only a class. libpq passes on no SQLSTATE while it
    # connects, so with psycopg a server that is down, a wrong password and a full server look
    # alike: we wait for all of them.
    return Fault.CONNECTION if isinstance(error, OperationalError) else Fault.HANDLER


def _by_state(state: str, error: DBAPIError) -> Fault:
    if was_raised_by_code(error):
        return Fault.HANDLER  # whatever code in the database calls its error, it is about the data it was given
    if state == "42501" and _told(error, "source_function") == "ExecWithCheckOptions":
        return Fault.HANDLER  # a policy refuses the row
    if state == "42601" and _told(error, "position") is None:
        return Fault.HANDLER  # a syntax error without a position in the statement: bad text for a tsquery or a jsonpath
    if state == "42883" and _told(error, "source_function") == "op_error":
        return Fault.HANDLER  # no such operator for these types: the bound value has another type than the column
    if state == "0A000" and _told(error, "source_function") == "RevalidateCachedQuery":
        return Fault.CONNECTION  # a table was altered under a prepared statement of this connection
    return _BY_STATE.get(state) or _BY_CLASS.get(state[:2]) or Fault.HANDLER


def was_raised_by_code(error: DBAPIError) -> bool:
    """Return whether a function or trigger in the database raised an error, in its own words."""
    return _told(error, "source_function") in _RAISERS


def _told(error: DBAPIError, what: str) -> str | None:
    """Return a field of the server's error report: psycopg keeps it in `diag`, asyncpg in the error itself."""
    diag, cause = getattr(error.orig, "diag", None), getattr(error.orig, "__cause__", None)
    for source, name in ((diag, what), (diag, f"statement_{what}"), (cause, what), (cause, f"server_{what}")):
        found = getattr(source, name, None)
        if isinstance(found, str):
            return found
    return None


_ENGINE = "_consumerkit_engine"


def note_engine(error: BaseException, engine: Engine) -> None:
    """Store on an error the engine that it came from; see `engine_of`."""
    with suppress(Exception):  # an error may be of any class
        setattr(error, _ENGINE, engine)


def engine_of(error: BaseException) -> Engine | None:
    """Return the engine that an error came from, if SQLAlchemy names it."""
    found = vars(error).get(_ENGINE) if is_a(error, DBAPIError) else None
    return found if isinstance(found, Engine) else None


def mistake_of(error: DBAPIError) -> str | None:
    """Return SQLite's text for a missing object, without the object's name: SQLite has no code for it."""
    found = _SQLITE_MISTAKE.match(str(error.orig)) if isinstance(error.orig, sqlite3.Error) else None
    return None if found is None else found[1] or "a statement that SQLite does not read"


def _sqlite_fault(error: sqlite3.Error) -> Fault:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return Fault.HANDLER
    # SQLite has no separate code for a missing object, or for a statement that it cannot read.
    if code == sqlite3.SQLITE_ERROR and _SQLITE_MISTAKE.match(str(error)):
        return Fault.DEPLOY
    if code == sqlite3.SQLITE_ERROR and _SQLITE_PRESENT.match(str(error)):
        return Fault.PRESENT
    return _BY_SQLITE_CODE.get(code & 0xFF, Fault.HANDLER)


# After these errors SQLite leaves the transaction open or rolls it back.
_SQLITE_REFUSALS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CONSTRAINT}


def is_refusal(error: BaseException) -> bool:
    """Return whether an error that answered COMMIT shows that nothing of the transaction is durable."""
    if not isinstance(error, DBAPIError) or _database_fault(error) is Fault.CONNECTION:
        return False
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _SQLITE_REFUSALS
    return sqlstate(error) is not None


def sqlstate(error: DBAPIError) -> str | None:
    """Return the five characters by which the SQL standard names an error, if the driver reports them."""
    for source in (error.orig, getattr(error.orig, "__cause__", None)):
        for name in ("sqlstate", "pgcode"):
            found = getattr(source, name, None)
            if isinstance(found, str):
                return found
    return None
