"""Whose fault a database error is: by SQLSTATE and connection state, never by class or text.

Drivers disagree on classes: the same lost connection or read-only server comes as an OperationalError, an
InternalError or a DBAPIError, so classes tell nothing.
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
    "08": Fault.CONNECTION,  # connection_exception; asyncpg tells 08003 for whatever ended a session
    # invalid_authorization_specification: what connected once will again, when the password was changed on both sides.
    "28": Fault.CONNECTION,
    "40": Fault.CONFLICT,  # serialization_failure, deadlock_detected
    "42": Fault.DEPLOY,  # a table, column, function or right that is missing
    "53": Fault.CAPACITY,  # disk_full, out_of_memory, configuration_limit_exceeded
    "57": Fault.CONNECTION,  # admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout
    "58": Fault.CAPACITY,  # system_error, io_error
}
_BY_STATE = {
    "25006": Fault.CONNECTION,  # read_only_sql_transaction: not the primary any more
    "25P03": Fault.CONNECTION,  # idle_in_transaction_session_timeout
    "26000": Fault.CONNECTION,  # invalid_sql_statement_name: a pooler gave us another session, without what we prepared
    "3D000": Fault.CONNECTION,  # invalid_catalog_name: found at the start, so it is just being restored
    "3F000": Fault.DEPLOY,  # invalid_schema_name
    "53300": Fault.CONNECTION,  # too_many_connections, of the server, the database or the role
    "55P03": Fault.CONFLICT,  # lock_not_available
    "57014": Fault.CAPACITY,  # query_canceled: statement_timeout
    "XX001": Fault.CAPACITY,  # data_corrupted
    "XX002": Fault.CAPACITY,  # index_corrupted
    # What a statement with bad data raises within class 42 is the handler's: a cast or an operator that does not fit.
    "42804": Fault.HANDLER,  # datatype_mismatch
    "42846": Fault.HANDLER,  # cannot_coerce
    # What another message of the transaction, or one before on the connection, has made.
    "42P03": Fault.PRESENT,  # duplicate_cursor
    "42P05": Fault.PRESENT,  # duplicate_prepared_statement
    "42P06": Fault.PRESENT,  # duplicate_schema
    "42P07": Fault.PRESENT,  # duplicate_table
    "42710": Fault.PRESENT,  # duplicate_object
    "42723": Fault.PRESENT,  # duplicate_function
}
# Where PL/pgSQL, PL/Python, PL/Perl and PL/Tcl raise what their code tells them to.
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
    """Return whose fault an error is, its causes and the members of a group included.

    Args:
        error: What was raised.
        in_handler: Whether the user's code ran. Outside of it a failing socket can only be the database's.
        alone: Whether to leave its causes and members out.
    """
    if alone:
        return _fault(error, in_handler)
    found = (_fault(one, in_handler) for one in all_in(error))
    return next((fault for fault in found if fault is not Fault.HANDLER), Fault.HANDLER)


def _fault(error: BaseException, in_handler: bool) -> Fault:
    if is_a(error, PoolTimeout):
        return Fault.CAPACITY
    if is_a(error, PendingRollbackError):
        # What a session says after the handler has swallowed an error; the code is that of a lost connection.
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
    # What the driver raised by itself has no more than a class. libpq hands on no SQLSTATE while it connects, so a
    # server that is down, a wrong password and a full server look alike with psycopg: all are waited for.
    return Fault.CONNECTION if isinstance(error, OperationalError) else Fault.HANDLER


def _by_state(state: str, error: DBAPIError) -> Fault:
    if was_raised_by_code(error):
        return Fault.HANDLER  # whatever code in the database calls its error, it is about what it was given
    if state == "42501" and _told(error, "source_function") == "ExecWithCheckOptions":
        return Fault.HANDLER  # a row that a policy refuses
    if state == "42601" and _told(error, "position") is None:
        return Fault.HANDLER  # a syntax error without a place in the statement: bad text for a tsquery or a jsonpath
    if state == "42883" and _told(error, "source_function") == "op_error":
        return Fault.HANDLER  # no such operator for these types: what was bound has another type than the column
    if state == "0A000" and _told(error, "source_function") == "RevalidateCachedQuery":
        return Fault.CONNECTION  # a table was altered under a prepared statement of this connection
    return _BY_STATE.get(state) or _BY_CLASS.get(state[:2]) or Fault.HANDLER


def was_raised_by_code(error: DBAPIError) -> bool:
    """Tell whether a function or trigger in the database raised an error, in words of its own."""
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
    """Note the engine that an error came from; see `engine_of`."""
    with suppress(Exception):  # an error may be of any class
        setattr(error, _ENGINE, engine)


def engine_of(error: BaseException) -> Engine | None:
    """Return the engine that an error came from, if SQLAlchemy names it."""
    found = vars(error).get(_ENGINE) if is_a(error, DBAPIError) else None
    return found if isinstance(found, Engine) else None


def mistake_of(error: DBAPIError) -> str | None:
    """Return what SQLite says that a statement lacks, as far as it is the same for any name: it has no code for it."""
    found = _SQLITE_MISTAKE.match(str(error.orig)) if isinstance(error.orig, sqlite3.Error) else None
    return None if found is None else found[1] or "a statement that SQLite does not read"


def _sqlite_fault(error: sqlite3.Error) -> Fault:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return Fault.HANDLER
    # SQLite has no code of its own for what is missing, or for a statement that it cannot read.
    if code == sqlite3.SQLITE_ERROR and _SQLITE_MISTAKE.match(str(error)):
        return Fault.DEPLOY
    if code == sqlite3.SQLITE_ERROR and _SQLITE_PRESENT.match(str(error)):
        return Fault.PRESENT
    return _BY_SQLITE_CODE.get(code & 0xFF, Fault.HANDLER)


# SQLite answers these and leaves the transaction open or takes it back.
_SQLITE_REFUSALS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CONSTRAINT}


def is_refusal(error: BaseException) -> bool:
    """Tell whether an error that COMMIT was answered with says that nothing of the transaction is durable."""
    if not isinstance(error, DBAPIError) or _database_fault(error) is Fault.CONNECTION:
        return False
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _SQLITE_REFUSALS
    return sqlstate(error) is not None


def sqlstate(error: DBAPIError) -> str | None:
    """Return the five characters by which the SQL standard names an error, where the driver tells them."""
    for source in (error.orig, getattr(error.orig, "__cause__", None)):
        for name in ("sqlstate", "pgcode"):
            found = getattr(source, name, None)
            if isinstance(found, str):
                return found
    return None
