"""One request's transaction: the key, the endpoint's changes and the answer, on the edge's own session."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeVar

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from consumerkit.errors import InProgress, TransactionMisused
from consumerkit.storage.dialects import Dialect, Kept, Limits
from consumerkit.storage.dialects.settings import SessionSettings
from consumerkit.storage.isolation import connection_of
from consumerkit.storage.keys import Key, KeyLedger, is_busy
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.location import remember
from consumerkit.storage.tables import Tables

T = TypeVar("T")
_log = logging.getLogger(__name__)
_LIMITS: Final = Limits(statement=60.0, lock=30.0, idle=60.0)


class EdgeTables(NamedTuple):
    """The tables of the edge's keys, located once, at the first request."""

    tables: Tables
    dialect: Dialect
    number: int


class TakenKey(NamedTuple):
    """The ledger's record of a key that was used before: its fingerprint, and the answer as text."""

    kept: Kept
    answer: str | None


@dataclass(slots=True)
class EdgeTransaction:
    """A session of the edge and its transaction."""

    session: AsyncSession | Session
    found: EdgeTables | None = None
    used: bool = False
    _token: str = ""
    _begun: SessionSettings | None = None

    @property
    def is_open(self) -> bool:
        """Whether the transaction has begun and not ended yet."""
        return self.found is not None

    async def begin(self, found: EdgeTables, key: Key | None) -> TakenKey | None:
        """Begin, and claim the key if there is one; return the ledger's record of a key that was used before.

        Raises:
            InProgress: Another transaction holds the key.
            DBAPIError: The database is out of reach.
        """
        self.found, self._token = found, secrets.token_hex(8)
        taken: TakenKey | None = await self.run(lambda session: self._begin(session, found, key))
        return taken

    def _begin(self, session: Session, found: EdgeTables, key: Key | None) -> TakenKey | None:
        try:
            session.begin()
            connection = connection_of(session, found.dialect)
            remember(session, found.tables)
            self._begun = found.dialect.begin(connection, _LIMITS, self._token)
        except DBAPIError as error:
            if is_busy(error):  # on SQLite another transaction is the one writer
                raise InProgress("another transaction is writing to the database") from error
            raise
        event.listen(session, "before_commit", self._refuse)
        if key is None:
            return None
        wait = None if found.dialect.single_writer else 0.0
        kept = KeyLedger(found.tables, found.dialect).claim(connection, key, wait)
        if kept is None:
            return None
        return TakenKey(kept, Ledger(found.tables, found.dialect, found.number).result(session, key.digest))

    def _refuse(self, session: Session) -> None:
        if not session.in_nested_transaction():
            raise TransactionMisused("an idempotent endpoint committed its session; the edge commits, with the answer")

    async def commit(self, key: Key | None, answer: str | None) -> None:
        """Write the answer to the key, and commit.

        Raises:
            TransactionMisused: The endpoint ended the transaction.
            DBAPIError: A change cannot be written, or COMMIT was not answered.
        """
        await self.run(lambda session: self._commit(session, key, answer))
        self.found = None

    def _commit(self, session: Session, key: Key | None, answer: str | None) -> None:
        assert self.found is not None
        tables, dialect, number = self.found
        if not session.in_transaction():
            raise TransactionMisused("an idempotent endpoint rolled its session back; the edge does, where it raises")
        session.flush()
        if key is not None and answer is not None:
            Ledger(tables, dialect, number).keep_results(session.connection(), {key.digest: answer})
        if not dialect.finalise(session.connection(), self._token, self._begun):
            raise TransactionMisused("an idempotent endpoint ended its transaction by itself; leave that to the edge")
        event.remove(session, "before_commit", self._refuse)
        session.commit()

    async def roll_back(self) -> None:
        """Roll back the transaction if it is open; the connection returns to the pool."""
        if self.found is not None:
            self.found = None
            await self.run(self._roll_back)

    def _roll_back(self, session: Session) -> None:
        if event.contains(session, "before_commit", self._refuse):
            event.remove(session, "before_commit", self._refuse)
        session.rollback()

    async def end(self) -> None:
        """Roll back the transaction if it is open, and close the session; a broken connection is given up."""
        try:
            await self.roll_back()
        except Exception as error:  # noqa: BLE001 - the server rolls back what is not committed
            _log.warning("a request's connection is given up: %s", type(error).__name__)
            await self._ended("invalidate")
        await self._ended("close")

    async def _ended(self, how: Literal["invalidate", "close"]) -> None:
        if isinstance(self.session, AsyncSession):
            await getattr(self.session, how)()
        else:
            await run_in_threadpool(getattr(self.session, how))

    async def run(self, work: Callable[[Session], T]) -> T:
        """Run synchronous work on the session."""
        if isinstance(self.session, AsyncSession):
            return await self.session.run_sync(work)
        return await run_in_threadpool(work, self.session)
