"""Sets up every SQLite connection: real transactions, full durability, and an end to abandoned transactions."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import Engine, event

from consumerkit.redaction.client_logs import silence_debugging

BEGIN: Final = "BEGIN IMMEDIATE"
BUSY_MILLISECONDS: Final = 30_000
_SETTINGS: Final = f"""
    PRAGMA busy_timeout = {BUSY_MILLISECONDS};
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA foreign_keys = ON;
"""
# An event loop refers to its tasks only weakly.
_UNDER_WAY: Final[set[asyncio.Task[None]]] = set()


def set_up(engine: Engine) -> None:
    """Give SQLite real transactions and full durability.

    Under the driver's own transaction control, a row inserted under a released savepoint survives a
    rollback, and a deferred transaction that becomes a writer fails at once if another writer was
    quicker. So that control is off, and every transaction begins as a writer. The recipe is
    SQLAlchemy's.
    """
    silence_debugging("aiosqlite")  # it shows each statement with its parameters
    if not event.contains(engine, "begin", _begun):
        event.listen(engine, "connect", _connected)
        event.listen(engine, "begin", _begun)
        event.listen(engine, "invalidate", _given_up)


def _connected(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    if hasattr(connection, "run_async"):
        # In one call: a cancellation between two calls would leave one open, and so lock the whole
        # file.
        connection.run_async(lambda driver: driver.executescript(_SETTINGS))
    else:
        connection.executescript(_SETTINGS)


def _begun(connection: Any) -> None:
    connection.exec_driver_sql(BEGIN)


def _given_up(connection: Any, _record: object, _error: object) -> None:
    """Make a connection that a cancellation broke roll back before it is closed.

    SQLite closes a connection only when nothing refers to its last statement any more. Until then
    the connection keeps its transaction's lock (https://sqlite.org/c3ref/close.html, on
    `sqlite3_close_v2`).
    """
    driver = getattr(connection, "driver_connection", None)
    if driver is None:
        return  # a driver for threads, which nothing cancels
    with suppress(RuntimeError):  # no event loop runs: the garbage collector found the connection
        # The driver's thread gets this when it is first awaited, before SQLAlchemy passes it the
        # close.
        rolled_back = asyncio.get_running_loop().create_task(_rolled_back(driver))
        _UNDER_WAY.add(rolled_back)
        rolled_back.add_done_callback(_UNDER_WAY.discard)


async def _rolled_back(driver: Any) -> None:
    with suppress(Exception):
        await driver.rollback()
