"""The outbox's rows as a relay sees them: read page by page, and removed once the broker has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, TypeVar

from sqlalchemy.orm import Session

from consumerkit.relay import reference
from consumerkit.storage import outbox, outbox_queues
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import RELAY_IDLE, Dialect, Limits, RelayHolder
from consumerkit.storage.outbox import OutboxMessage, Pending, Queue, RowIdentity
from consumerkit.storage.outbox_queues import OutboxPage, Waiting
from consumerkit.storage.tables import Tables

T = TypeVar("T")

PAGE: Final = 500
PAGE_BYTES: Final = 8 * 1024 * 1024


class Rows:
    """Reads and removes; each method is one transaction.

    Args:
        database: Where the outbox is.
        dialect: Its dialect.
        tables: The table definitions.
        deadline: Seconds after which a database that does not answer is left.
    """

    def __init__(self, database: Database, dialect: Dialect, tables: Tables, deadline: float) -> None:
        self._database = database
        self._dialect = dialect
        self._tables = tables
        self._deadline = deadline
        self._limits = Limits(statement=deadline, lock=deadline, idle=RELAY_IDLE)
        # What the broker has, and the outbox still, too: removed before anything is read, whatever failed before.
        self._acknowledged: list[RowIdentity] = []

    def acknowledge(self, sent: Iterable[Pending]) -> None:
        """Have rows removed before the next page is read."""
        self._acknowledged += [one.identity for one in sent]

    async def remove(self) -> None:
        """Remove what was acknowledged."""
        if self._acknowledged:
            await self._removed(lambda _: None)

    async def lowest(self) -> OutboxPage:
        """Return the lowest rows of all, for while nothing waits."""

        def read(session: Session) -> OutboxPage:
            return OutboxPage(outbox.page(session.connection(), self._tables, PAGE, PAGE_BYTES), None, frozenset())

        return await self._removed(read)

    async def next_queues(self, after: Queue | None, waiting: Waiting) -> OutboxPage:
        """Return rows of the next queues that do not wait, each from its lowest on."""

        def read(session: Session) -> OutboxPage:
            connection = session.connection()
            return outbox_queues.page(
                connection, self._dialect, self._tables, PAGE, PAGE_BYTES, after=after, waiting=waiting
            )

        return await self._removed(read)

    async def keeps(self, message: OutboxMessage) -> bool:
        """Tell whether the table of dead letters holds the whole of one in the outbox."""
        look = partial(reference.is_kept, tables=self._tables, message=message)
        return await self._database.run(look, within=self._deadline)

    async def holder(self) -> RelayHolder | None:
        """Return who has the relay's turn while messages wait; None where no process has, or nothing waits."""

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
