"""Whether a driver waits for the server, as the driver itself knows it.

The events of SQLAlchemy's cursors would miss the rows of a stream and what a handler asks the driver's own connection,
and do not end where a statement fails.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

_OPEN: Final = (2, 3)  # libpq's PQTRANS_INTRANS and PQTRANS_INERROR: in a transaction, and nothing under way
_HOLDERS: Final = ("_connection", "_conn", "connection")


class DriverState(NamedTuple):
    """What one connection's driver does.

    Attributes:
        connection: The driver's own connection.
        under_way: Tells whether a statement or a COPY is under way on it; also where that cannot be known.
    """

    connection: object
    under_way: Callable[[], bool]

    def runs(self, frame: FrameType) -> bool:
        """Tell whether a frame is the driver's, at work for this connection."""
        if not frame.f_globals.get("__name__", "").startswith(("asyncpg.", "psycopg.")):
            return False
        found = frame.f_locals.get("self")
        return found is self.connection or any(getattr(found, name, None) is self.connection for name in _HOLDERS)


def driver_state(connection: Connection) -> DriverState | None:
    """Return what tells what a connection's driver does; None for a driver that cannot be asked.

    The driver of SQLite works in a thread, and nothing tells whether that is at work for this connection.
    """
    make = _MADE.get(connection.dialect.driver)
    if make is None or not connection.dialect.is_async:
        return None
    driver: Any = connection.connection.driver_connection
    return DriverState(driver, make(driver))


def _psycopg(driver: Any) -> Callable[[], bool]:
    libpq = driver.pgconn
    return lambda: libpq.transaction_status not in _OPEN


def _asyncpg(driver: Any) -> Callable[[], bool]:
    # What it waits for is a future that its protocol holds, and shows to the garbage collector alone.
    protocol, held, future = driver._protocol, gc.get_referents, asyncio.Future  # noqa: SLF001
    return lambda: future in map(type, held(protocol))


_MADE: Final[dict[str, Callable[[Any], Callable[[], bool]]]] = {"psycopg": _psycopg, "asyncpg": _asyncpg}
