"""SQLite, for one machine: a single writer at a time, so what is read after BEGIN IMMEDIATE stays true."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, func, insert, null, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from consumerkit.errors import StartError
from consumerkit.outcome import Outcome
from consumerkit.storage.dialects.base import Claim, ClaimHolder, Kept, Limits, RelayHolder, check_number
from consumerkit.storage.dialects.settings import SessionSettings
from consumerkit.storage.portions import portions
from consumerkit.storage.tables import DEFAULT_PREFIX, Tables

# A statement takes 32,766 parameters at most, or 999 in older builds.
# The form in which SQLAlchemy writes a DateTime: both compare as text.
_MOMENT = "%Y-%m-%d %H:%M:%f"
_PROBE = text("SELECT 1")
_BEGAN: Final = "consumerkit.began"


class SQLite:
    """The dialect for SQLite 3.35 and newer, on connections set up by `consumerkit.storage.database`."""

    single_writer = True

    def __init__(self, tables: Tables) -> None:
        self._ledger = tables.processed_messages
        self._consumers = tables.consumers
        self._relay = "consumerkit" if tables.prefix == DEFAULT_PREFIX else tables.prefix

    def begin(
        self, connection: Connection, limits: Limits, token: str, fences: Sequence[int] = ()
    ) -> SessionSettings | None:
        """Mark the transaction by a savepoint, which no COMMIT and no ROLLBACK leaves behind."""
        connection.execute(text(f"SAVEPOINT consumerkit_{token}"))
        connection.info[_BEGAN] = datetime.now(UTC)
        return None

    def limit(self, connection: Connection, limits: Limits) -> None:
        """See `Dialect.limit`: there is no server that could enforce limits."""

    def is_open(self, connection: Connection) -> bool:
        """See `Dialect.is_open`."""
        driver: Any = connection.connection.driver_connection
        return bool(driver.in_transaction)

    def proof(self, connection: Connection) -> str:
        """See `Dialect.proof`: its time. Only one writer runs at a time, so no two have the same microsecond."""
        moment: datetime = connection.info[_BEGAN]
        return moment.isoformat()

    def written_by(self, proof: str) -> ColumnElement[bool]:
        """See `Dialect.written_by`."""
        return self._ledger.c.processed_at == datetime.fromisoformat(proof)

    def claimed_at(self, connection: Connection) -> Any:
        """See `Dialect.claimed_at`."""
        return connection.info.get(_BEGAN) or func.now()

    def take_over(self, connection: Connection, fence: int, *, wait: float) -> bool:
        """See `Dialect.take_over`: this transaction is the only writer already."""
        return True

    def take_free(self, connection: Connection, fences: Sequence[int]) -> list[int]:
        """See `Dialect.take_free`: this transaction is the only writer already."""
        return list(fences)

    def in_seconds(self, seconds: float) -> ColumnElement[Any]:
        """See `Dialect.in_seconds`."""
        return func.strftime(_MOMENT, "now", f"{seconds:+.3f} seconds")

    def seconds_since(self, moment: ColumnElement[Any]) -> ColumnElement[Any]:
        """See `Dialect.seconds_since`."""
        return (func.julianday("now") - func.julianday(moment)) * 86400.0

    def claim(
        self, connection: Connection, consumer: int, claims: Sequence[Claim], *, name: str | None = None
    ) -> set[bytes]:
        """Insert the missing rows: no other connection can write between the read and the insert."""
        taken = self._taken(connection, consumer, [claim.digest for claim in claims], name)
        moment = connection.info.get(_BEGAN) or datetime.now(UTC)
        rows = [
            {**claim._asdict(), "consumer": consumer, "outcome": int(claim.outcome), "processed_at": moment}
            for claim in claims
            if claim.digest not in taken
        ]
        if rows:
            connection.execute(insert(self._ledger), rows)
        return {row["digest"] for row in rows}

    def _taken(self, connection: Connection, consumer: int, digests: Sequence[bytes], name: str | None) -> set[bytes]:
        """Return the digests that are in the ledger; the same statements read the handler's number."""
        ledger, consumers = self._ledger.c, self._consumers.c
        found: set[bytes] = set()
        for some in portions(digests):
            mine = (ledger.consumer == consumer, ledger.digest.in_(some))
            numbers = select(null(), consumers.id).where(consumers.name == name)
            rows = connection.execute(select(ledger.digest, ledger.consumer).where(*mine).union_all(numbers)).all()
            check_number(consumer, name, next((number for digest, number in rows if digest is None), None))
            found.update(digest for digest, _ in rows if digest is not None)
        return found

    def kept(self, connection: Connection, consumer: int, digests: Sequence[bytes]) -> dict[bytes, Kept]:
        """See `Dialect.kept`."""
        ledger = self._ledger.c
        found: dict[bytes, Kept] = {}
        for some in portions(digests):
            rows = connection.execute(
                select(
                    ledger.digest,
                    ledger.fingerprint,
                    ledger.outcome,
                    ledger.fingerprint_version,
                    self.seconds_since(ledger.processed_at),
                ).where(ledger.consumer == consumer, ledger.digest.in_(some))
            )
            for digest, raw, outcome, version, age in rows:
                found[digest] = Kept(raw, Outcome(outcome), version, max(0.0, age or 0.0))
        return found

    def holder(self, connection: Connection, consumer: int, digest: bytes) -> ClaimHolder:
        """See `Dialect.holder`: other connections' open claims are invisible, and a second writer cannot try."""
        return ClaimHolder.UNTOLD

    def release(self, connection: Connection, consumer: int, digests: Sequence[bytes]) -> None:
        """See `Dialect.release`."""
        ledger = self._ledger.c
        for some in portions(digests):
            connection.execute(delete(self._ledger).where(ledger.consumer == consumer, ledger.digest.in_(some)))

    def finalise(
        self, connection: Connection, token: str, begun: SessionSettings | None = None, *, local: bool = False
    ) -> bool:
        """Release the savepoint: it is gone if its transaction is."""
        return _found_savepoint(connection, f"RELEASE consumerkit_{token}")

    def holds(self, connection: Connection, token: str) -> bool:
        """Release the savepoint and set it again: the only other way to test for it is a rollback."""
        held = _found_savepoint(connection, f"RELEASE consumerkit_{token}")
        if held:
            connection.execute(text(f"SAVEPOINT consumerkit_{token}"))
        return held

    def probe(self, connection: Connection) -> None:
        """See `Dialect.probe`."""
        connection.execute(_PROBE)

    @contextmanager
    def relay_guard(self, location: str) -> Iterator[bool]:
        """Lock a file beside the database: a transaction would block all writers during the wait for the broker."""
        if location in ("", ":memory:"):
            yield True
            return
        descriptor = _opened(self._relay_file(location), location)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(descriptor)

    def _relay_file(self, location: str) -> Path:
        return Path(f"{location}-{self._relay}-relay")

    def lock_relay(self, session: Session, *, wait: float = 0.0) -> bool:
        """See `Dialect.lock_relay`."""
        return True

    def relay_lives(self, location: str) -> None:
        """See `Dialect.relay_lives`."""
        if location not in ("", ":memory:"):
            os.utime(self._relay_file(location))

    def relay_holder(self, connection: Connection, location: str) -> RelayHolder | None:
        """See `Dialect.relay_holder`; the turn is free if the file is not locked, as the caller has checked."""
        file = self._relay_file(location)
        return RelayHolder(f"the process that locks {file}", max(0.0, time.time() - file.stat().st_mtime))

    def by_index(self, connection: Connection) -> AbstractContextManager[None]:
        """See `Dialect.by_index`: SQLite plans by rules, not by statistics."""
        return nullcontext()

    def lock_pruning(self, connection: Connection) -> bool:
        """See `Dialect.lock_pruning`: this transaction is the only writer already."""
        return True

    def isolation(self) -> str | None:
        """See `Dialect.isolation`."""
        return None

    def most_connections(self, connection: Connection) -> int | None:
        """See `Dialect.most_connections`."""
        return None


def _opened(path: Path, database: str) -> int:
    """Open our lock file, or make it.

    Raises:
        StartError: Another user's file, or a link, stands in its place. Its owner could make us
            open, lock or create a file of their choice.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise
        raise StartError(f"the lock file {path} is not a file; remove what stands there") from None
    found = os.fstat(descriptor)
    owners = {os.geteuid()} | ({os.stat(database).st_uid} if os.path.exists(database) else set())  # noqa: PTH110, PTH116
    if stat.S_ISREG(found.st_mode) and found.st_uid in owners and found.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    raise StartError(f"the lock file {path} belongs to neither this process's user nor the database's; remove it")


def _found_savepoint(connection: Connection, statement: str) -> bool:
    try:
        connection.execute(text(statement))
    except OperationalError as error:
        if "no such savepoint" in str(error.orig):
            return False
        raise
    return True
