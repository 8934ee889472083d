"""Keys in the ledger that come from jobs, backfills and HTTP requests instead of messages.

They have their own names in `consumers`, without topics. A key is claimed in the caller's
transaction, whatever engine that came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, delete, func, select, text, update
from sqlalchemy.exc import DBAPIError

from consumerkit.errors import ConfigurationError, InProgress
from consumerkit.handlers.fingerprint import DIGEST_BYTES, VERSION
from consumerkit.outcome import Outcome
from consumerkit.storage.consumers import NO_TOPICS
from consumerkit.storage.dialects import Dialect, Kept, insert_if_new
from consumerkit.storage.faults import Fault, fault_of, sqlstate
from consumerkit.storage.tables import Tables

UNTOLD: Final = b"\0" * DIGEST_BYTES
"""The fingerprint of a key that was claimed without one."""
_LEAST_WAIT: Final = 0.01
_READINGS: Final = 3
_LIMIT: Final = text("""
    SELECT current_setting('lock_timeout'), set_config('lock_timeout', :limit, true)
""")
_UNLIMIT: Final = text("SELECT set_config('lock_timeout', :limit, true)")


@dataclass(frozen=True, slots=True)
class Key:
    """A key to claim.

    Attributes:
        owner: The name in `consumers`, such as `job:nightly-invoices`.
        digest: 16 bytes: the ledger's key.
        shown: The key as text for people: printable, and not empty.
        fingerprint: 16 bytes; `UNTOLD` if nothing is compared.
    """

    owner: str
    digest: bytes
    shown: str
    fingerprint: bytes = UNTOLD


@dataclass(frozen=True, slots=True)
class KeyLedger:
    """The statements on keys; nothing here commits."""

    tables: Tables
    dialect: Dialect

    def number(self, connection: Connection, owner: str, retention: int | None = None) -> int:
        """Return the number of a name; enters a new name.

        Args:
            connection: The caller's.
            owner: The name.
            retention: For how many seconds a new name keeps its keys; None keeps them for good.

        Raises:
            ConfigurationError: A handler has this name.
        """
        c = self.tables.consumers.c
        query = select(c.id, c.topics).where(c.name == owner)
        row = connection.execute(query).one_or_none()
        if row is None:
            values = {"name": owner, "group_name": "", "topics": NO_TOPICS, "retention": retention}
            insert_if_new(connection, self.tables.consumers, values, key=[c.name], returning=c.id)
            row = connection.execute(query).one()
        if row.topics != NO_TOPICS:
            raise ConfigurationError(f"{owner!r} is the name of a handler on this database; choose another one")
        return int(row.id)

    def keep_for(self, connection: Connection, owner: str, retention: int) -> int:
        """Set for how many seconds the keys of a name are kept; return the name's number.

        Raises:
            ConfigurationError: A handler has this name.
        """
        number, c = self.number(connection, owner, retention), self.tables.consumers.c
        other = c.retention.is_distinct_from(retention)
        connection.execute(update(self.tables.consumers).where(c.id == number, other).values(retention=retention))
        return number

    def lock_writer(self, connection: Connection) -> None:
        """Make this transaction SQLite's one writer before it reads, so that what it reads stays true.

        SQLite's driver begins no transaction for a SELECT or a SAVEPOINT, and releasing a savepoint
        outside a transaction commits.
        """
        if self.dialect.single_writer:
            connection.execute(delete(self.tables.consumers).where(self.tables.consumers.c.id < 0))

    def claim(self, connection: Connection, key: Key, wait: float | None = None) -> Kept | None:
        """Claim a key; waits for a concurrent transaction that has claimed it.

        Args:
            connection: The caller's.
            key: The key to claim.
            wait: For how many seconds; None waits as long as the connection waits for any lock.

        Returns:
            None if the key is ours, else what the ledger holds.

        Raises:
            InProgress: The other transaction did not end in time. This transaction is unusable.
            ConfigurationError: The connection is in autocommit; the claim is taken back.
        """
        with self._in_time(connection, key, wait):
            self.lock_writer(connection)
            number = self.number(connection, key.owner)
            for _ in range(_READINGS):
                if self._insert(connection, number, key):
                    self._refuse_autocommit(connection, number, key)
                    return None
                kept = self.dialect.kept(connection, number, [key.digest])
                if key.digest in kept:
                    return kept[key.digest]
        raise InProgress(f"{key.owner}: the key {key.shown} was inserted and deleted all the time; try again")

    def now(self) -> Any:
        """Return the present time in the form of `processed_at`."""
        return datetime.now(UTC) if self.dialect.single_writer else func.now()

    def _insert(self, connection: Connection, number: int, key: Key) -> bool:
        table = self.tables.processed_messages
        values = {
            "consumer": number,
            "digest": key.digest,
            "message_id": key.shown,
            "fingerprint": key.fingerprint,
            "fingerprint_version": None if key.fingerprint == UNTOLD else VERSION,
            "outcome": int(Outcome.PROCESSED),
            "processed_at": self.now(),
        }
        unique = [table.c.consumer, table.c.digest]
        return insert_if_new(connection, table, values, key=unique, returning=table.c.consumer) is not None

    def _refuse_autocommit(self, connection: Connection, number: int, key: Key) -> None:
        if not self.dialect.is_open(connection):
            self.dialect.release(connection, number, [key.digest])
            raise ConfigurationError(
                f"{key.owner}: the session's connection is in autocommit, so that key and changes would not be one "
                "transaction; give a session of an engine without it"
            )

    @contextmanager
    def _in_time(self, connection: Connection, key: Key, wait: float | None) -> Iterator[None]:
        if wait is not None and self.dialect.single_writer:
            raise ConfigurationError(
                f"{key.owner}: wait={wait} cannot be kept on SQLite, whose connections wait as long as their own "
                "timeout says; leave it out"
            )
        try:
            if wait is None:
                yield
            else:
                limit = f"{max(_LEAST_WAIT, wait) * 1000:.0f}ms"
                before = connection.execute(_LIMIT, {"limit": limit}).one()[0]
                yield
                connection.execute(_UNLIMIT, {"limit": before})
        except DBAPIError as error:
            if is_busy(error):
                raise InProgress(f"{key.owner}: another transaction is at the key {key.shown}") from error
            raise


def is_busy(error: DBAPIError) -> bool:
    """Return whether the error means that a lock was not available in time."""
    state = sqlstate(error)
    return state == "55P03" if state is not None else fault_of(error, in_handler=True, alone=True) is Fault.CONFLICT
