"""The database's clock measures the age of events, because a worker's clock may be days ahead."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, DateTime, literal, select

from consumerkit.engine.partitions.partition_store import InTransaction
from consumerkit.storage.dialects import Dialect

EVERY: Final = 5.0
_EPOCH: Final = literal(datetime.fromtimestamp(0, UTC), DateTime(timezone=True))


class DatabaseClock:
    """Gives the database's time from measurements at the start and every few seconds.

    Between two measurements the monotonic clock counts, so a change of the machine's clock has no effect.

    Args:
        dialect: The database's.
        run: Runs work in a transaction of its own.
    """

    def __init__(self, dialect: Dialect, run: InTransaction) -> None:
        self._dialect = dialect
        self._run = run
        self._ahead: float | None = None

    def now(self) -> float | None:
        """Return the seconds since the epoch on the database's clock; None before the first measurement."""
        return None if self._ahead is None else time.monotonic() + self._ahead

    async def measure(self) -> None:
        """Ask the database.

        Raises:
            Exception: It did not answer; the previous measurement holds.
        """
        before = time.monotonic()
        seconds = await self._run(self._ask)
        # The database answered at some moment in between. An error of seconds does not matter for ages of days.
        self._ahead = seconds - (before + time.monotonic()) / 2

    def _ask(self, connection: Connection) -> float:
        return float(connection.execute(select(self._dialect.seconds_since(_EPOCH))).scalar_one())

    async def run(self) -> None:
        """Measure every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            # Other parts announce the database's trouble; the last measurement holds until it is over.
            with suppress(Exception):
                await self.measure()
