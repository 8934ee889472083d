"""A backfill's loop: each transaction holds a batch and its checkpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from consumerkit.errors import ConfigurationError, TransactionMisused
from consumerkit.jobs.own_transaction import SessionTables, commit, found_for, is_callers
from consumerkit.jobs.paging import Page, Paging
from consumerkit.jobs.position import BackfillPosition, parsed
from consumerkit.jobs.progress import Bar
from consumerkit.storage import checkpoints
from consumerkit.storage.tables import Tables


class BackfillPace:
    """Tells how long to wait after a batch, to keep to a rate of rows per second."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._began = 0.0

    def begin(self) -> None:
        """Record that a batch begins."""
        self._began = time.monotonic()

    def wait(self, rows: int) -> float:
        """Return how many seconds to wait after a batch of this many rows."""
        if self._rate is None:
            return 0.0
        return max(0.0, self._began + rows / self._rate - time.monotonic())


class Batches:
    """What happens between two batches, on the plain session.

    Args:
        label: The backfill's name among the handlers.
        paging: The query and its key.
        size: Rows in a batch.
        tables: The table definitions.
        bar: Shows the progress; None shows nothing.
    """

    def __init__(self, label: str, paging: Paging, size: int, tables: Tables, bar: Bar | None) -> None:
        self._label = label
        self._paging = paging
        self._size = size
        self._tables = tables
        self._bar = bar
        self._found: SessionTables | None = None
        self._began: SessionTransaction | None = None
        self._rows = 0

    def finish(self, session: Session) -> int:
        """Commit the current batch; return the number of its rows."""
        began, self._began = self._began, None
        if began is None:
            return 0
        event.remove(session, "before_commit", self._refuse)
        assert self._found is not None
        try:
            commit(session, began, self._found.dialect, self._label)
        except BaseException:
            session.rollback()
            raise
        if self._bar is not None:
            self._bar.advance(self._rows)
        return self._rows

    def take(self, session: Session) -> Page | None:
        """Begin a transaction, move the checkpoint behind the next batch, and return that batch; None at the end."""
        if is_callers(session):
            raise ConfigurationError(
                f"{self._label}: each batch is a transaction of its own; give a session outside of session.begin()"
            )
        try:
            page = self._take(session)
        except BaseException:
            session.rollback()
            raise
        if page is None and self._bar is not None:
            self._bar.stop()
        return page

    def _take(self, session: Session) -> Page | None:
        found = self._found = found_for(session, self._tables, self._label)
        began = session.get_transaction()
        assert began is not None
        position = self._position(session, found)
        if self._bar is not None and not self._bar.started:
            self._bar.start(position.rows, position.rows + self._paging.count(session, position.after))
        page = self._paging.page(session, position.after, self._size)
        moved = position.moved(page.last, len(page.rows)) if page is not None else position.ended()
        checkpoints.move(found.keys, session.connection(), self._label, moved.text(self._label))
        if page is None:
            commit(session, began, found.dialect, self._label)
            return None
        self._began, self._rows = began, len(page.rows)
        event.listen(session, "before_commit", self._refuse)
        return page

    def _position(self, session: Session, found: SessionTables) -> BackfillPosition:
        first = BackfillPosition(self._paging.names)
        position = parsed(checkpoints.lock(found.keys, session.connection(), self._label, first.text(self._label)))
        if position.key != first.key:
            raise ConfigurationError(
                f"{self._label}: its position is by ({', '.join(position.key)}) and cannot go on by "
                f"({', '.join(first.key)}); give the same key, or another name"
            )
        return position

    def _refuse(self, session: Session) -> None:
        if session.get_transaction() is self._began and not session.in_nested_transaction():
            raise TransactionMisused(
                f"{self._label}: the loop commits each batch before the next one; do not commit yourself"
            )


class InThread(Iterator[Sequence[Any]]):
    """The loop on a plain session."""

    def __init__(self, session: Session, batches: Batches, pace: BackfillPace) -> None:
        self._session = session
        self._batches = batches
        self._pace = pace

    def __next__(self) -> Sequence[Any]:
        """Commit the batch in hand, and return the next one."""
        time.sleep(self._pace.wait(self._batches.finish(self._session)))
        self._pace.begin()
        page = self._batches.take(self._session)
        if page is None:
            raise StopIteration
        return page.rows


class InCoroutine(AsyncIterator[Sequence[Any]]):
    """The loop on a session for coroutines."""

    def __init__(self, session: AsyncSession, batches: Batches, pace: BackfillPace) -> None:
        self._session = session
        self._batches = batches
        self._pace = pace

    async def __anext__(self) -> Sequence[Any]:
        """Commit the batch in hand, and return the next one."""
        await asyncio.sleep(self._pace.wait(await self._session.run_sync(self._batches.finish)))
        self._pace.begin()
        page = await self._session.run_sync(self._batches.take)
        if page is None:
            raise StopAsyncIteration
        return page.rows
