"""Poolers that give each transaction another session of the server, as pgbouncer does in transaction mode.

A statement that a driver prepared in one session is missing in the next, or its next name is taken
there. A pooler is recognised by how the server refuses a statement that a driver prepared by
itself. From then on the engine's connections prepare nothing that outlasts a transaction.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final
from uuid import uuid4
from weakref import WeakSet

from sqlalchemy import URL, Dialect, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from consumerkit.errors import ConfigurationError
from consumerkit.storage.faults import sqlstate, was_raised_by_code

SWITCH: Final = "prepared_statements"
_REFUSALS: Final = frozenset(("26000", "42P05"))  # no such prepared statement, and a duplicate name
_USERS_OWN: Final = re.compile(r"\s*(?:PREPARE|EXECUTE|DEALLOCATE)\b", re.IGNORECASE)
_PER_STATEMENT: Final = "statement pooling mode"
_off: Final[WeakSet[Dialect]] = WeakSet()
_log = logging.getLogger(__name__)


def taken_from(url: URL) -> tuple[URL, bool]:
    """Return a URL without its `prepared_statements`, and whether that switches prepared statements off.

    Raises:
        ConfigurationError: It is neither `on` nor `off`.
    """
    if SWITCH not in url.query:
        return url, False
    said = url.query[SWITCH]
    if said not in ("on", "off"):
        raise ConfigurationError(f"database: {SWITCH} in the URL is neither on nor off")
    if url.get_backend_name() != "postgresql":
        raise ConfigurationError(f"database: {SWITCH} in the URL is for PostgreSQL; leave it out")
    return url.difference_update_query([SWITCH]), said == "off"


def set_up(engine: Engine, *, off: bool = False) -> None:
    """Adapt an engine to a pooler: from the beginning, or once a pooler is recognised."""
    if off:
        _off.add(engine.dialect)
    if not event.contains(engine, "do_connect", _connecting):
        event.listen(engine, "do_connect", _connecting)
        event.listen(engine, "handle_error", _refused)


def _connecting(dialect: Dialect, _record: object, _arguments: object, options: dict[str, Any]) -> None:
    if dialect not in _off:
        return
    if dialect.driver == "asyncpg":
        options["statement_cache_size"] = 0
        options["prepared_statement_cache_size"] = 0
        # asyncpg prepares each statement all the same; under unique names, no two statements
        # collide.
        options["prepared_statement_name_func"] = lambda: f"consumerkit_{uuid4().hex}"
    else:
        options["prepare_threshold"] = None


def has_refused(error: BaseException | None) -> bool:
    """Tell whether a pooler stands behind an error: the same work succeeds on a connection that is made afterwards."""
    return isinstance(error, DBAPIError) and error.connection_invalidated and sqlstate(error) in _REFUSALS


def way_out(words: str) -> str | None:
    """Return what to do about a pooler that gives each statement another session, by its words; None for others."""
    return (
        "a transaction needs one session: set the pooler's pool_mode to transaction"
        if _PER_STATEMENT in words
        else None
    )


def _refused(context: ExceptionContext) -> None:
    error = context.sqlalchemy_exception
    if not isinstance(error, DBAPIError) or sqlstate(error) not in _REFUSALS:
        return
    if was_raised_by_code(error) or _USERS_OWN.match(context.statement or ""):
        return
    # The pool's other connections have prepared statements too.
    context.is_disconnect = True
    if context.dialect not in _off:
        _off.add(context.dialect)
        _log.warning(
            "database: a prepared statement was not there, or was there already (%s), as behind a pooler in "
            "transaction mode; connections do without from now on; say so from the start with ?%s=off in the URL",
            sqlstate(error),
            SWITCH,
        )
