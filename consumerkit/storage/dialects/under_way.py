"""Whether a driver waits for the server, according to the driver itself.

SQLAlchemy's cursor events miss the rows of a stream and the statements that a handler gives the
driver's own connection, and they do not end if a statement fails.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

_OPEN: Final = (2, 3)  # libpq's PQTRANS_INTRANS and PQTRANS_INERROR: in a transaction, and nothing is running
_HOLDERS: Final = ("_connection", "_conn", "connection")


class DriverState(NamedTuple):
    """What the driver of one connection is doing.

    Attributes:
        connection: The driver's own connection.
        under_way: Returns whether a statement or a COPY is running on it; True also if that cannot
            be known.
    """

    connection: object
    under_way: Callable[[], bool]

    def runs(self, frame: FrameType) -> bool:
        """Return whether a frame belongs to the driver, at work for this connection."""
        if not frame.f_globals.get("__name__", "").startswith(("asyncpg.", "psycopg.")):
            return False
        found = frame.f_locals.get("self")
        return found is self.connection or any(getattr(found, name, None) is self.connection for name in _HOLDERS)


def driver_state(connection: Connection) -> DriverState | None:
    """Return the state of a connection's driver; None for a driver that does not reveal it.

    SQLite's driver works in a thread, and nothing shows whether that thread works for this
    connection.
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
    # The driver waits for a future that its protocol holds and shows only to the garbage collector.
    protocol, held, future = driver._protocol, gc.get_referents, asyncio.Future  # noqa: SLF001
    return lambda: future in map(type, held(protocol))


_MADE: Final[dict[str, Callable[[Any], Callable[[], bool]]]] = {"psycopg": _psycopg, "asyncpg": _asyncpg}
