"""Reads the outbox's rows page by page for a relay, and removes them once the broker has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar

from sqlalchemy.orm import Session

from consumerkit.relay import reference
from consumerkit.storage import outbox, outbox_queues, outbox_remaining
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import RELAY_IDLE, Dialect, Limits, RelayHolder
from consumerkit.storage.outbox import OutboxMessage, Pending, Queue, RowIdentity
from consumerkit.storage.outbox_queues import OutboxPage, Waiting
from consumerkit.storage.outbox_remaining import Remaining
from consumerkit.storage.tables import Tables

T = TypeVar("T")

PAGE: Final = 500
PAGE_BYTES: Final = 8 * 1024 * 1024


class Rows:
    """Reads and removes rows; each method is one transaction.

    Args:
        database: The outbox's database.
        dialect: Its dialect.
        tables: The table definitions.
        deadline: Seconds after which a request to a silent database is abandoned.
    """

    def __init__(self, database: Database, dialect: Dialect, tables: Tables, deadline: float) -> None:
        self._database = database
        self._dialect = dialect
        self._tables = tables
        self._deadline = deadline
        self._limits = Limits(statement=deadline, lock=deadline, idle=RELAY_IDLE)
        # Rows that the broker has and the outbox still holds; they are removed before the next read.
        self._acknowledged: list[RowIdentity] = []

    def acknowledge(self, sent: Iterable[Pending]) -> None:
        """Mark rows for removal before the next page is read."""
        self._acknowledged += [one.identity for one in sent]

    async def remove(self) -> None:
        """Remove acknowledged rows."""
        if self._acknowledged:
            await self._removed(lambda _: None)

    async def lowest(self) -> OutboxPage:
        """Return the lowest rows of all; for use while nothing waits."""

        def read(session: Session) -> OutboxPage:
            return OutboxPage(outbox.page(session.connection(), self._tables, PAGE, PAGE_BYTES), None, frozenset())

        return await self._removed(read)

    async def next_queues(self, after: Queue | None, waiting: Waiting) -> OutboxPage:
        """Return rows of the next queues that do not wait, each from its lowest row on."""

        def read(session: Session) -> OutboxPage:
            connection = session.connection()
            return outbox_queues.page(
                connection, self._dialect, self._tables, PAGE, PAGE_BYTES, after=after, waiting=waiting
            )

        return await self._removed(read)

    async def remaining(self, sequences: Sequence[int], topics: Sequence[bytes]) -> Remaining:
        """Return which of these messages still wait, and for which of these topics any message does."""

        def look(session: Session) -> Remaining:
            return outbox_remaining.remaining(session.connection(), self._dialect, self._tables, sequences, topics)

        return await self._database.run(look, within=self._deadline)

    async def keeps(self, message: OutboxMessage) -> bool:
        """Tell whether the dead-letter table holds the whole message of a letter in the outbox."""
        look = partial(reference.is_kept, tables=self._tables, message=message)
        return await self._database.run(look, within=self._deadline)

    async def holder(self) -> RelayHolder | None:
        """Return who has the relay's turn while messages wait; None if no process has it or nothing waits."""

        def look(session: Session) -> RelayHolder | None:
            connection = session.connection()
            if outbox.oldest(connection, self._tables, self._dialect) is None:
                return None
            return self._dialect.relay_holder(connection, self._database.location)

        return await self._database.run(look, within=self._deadline)

    async def _removed(self, read: Callable[[Session], T]) -> T:
        acknowledged = list(self._acknowledged)

        def work(session: Session) -> T:
            self._dialect.limit(session.connection(), self._limits)
            outbox.remove(session.connection(), self._tables, acknowledged)
            return read(session)

        found = await self._database.run(work, within=self._deadline)
        del self._acknowledged[: len(acknowledged)]
        return found
