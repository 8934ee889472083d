"""The run's database, as no worker sees it: PostgreSQL or a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import psycopg

from consumerkit.storage.database import Database
from tests.integration.backup import Backup
from tests.services import PostgresServer
from tests.services.tables import make_tables
from tests.stress.handlers import Base
from tests.stress.message_faults import TABLES
from tests.stress.oracle import Dead, Done, Parked, Snapshot
from tests.stress.plan import Plan

_QUERIES = (
    'SELECT sequence, message_id, partition, "offset", attempt FROM stress_effects ORDER BY sequence',
    'SELECT message_id, partition, "offset", reason, state, attempts FROM consumerkit_dead_letters',
    'SELECT message_id, partition, "offset", key, kind, attempts, due_at IS NOT NULL FROM consumerkit_parked_messages',
    "SELECT message_id, outcome FROM consumerkit_processed_messages",
    "SELECT partition, mark FROM consumerkit_partition_progress WHERE mark IS NOT NULL",
    "SELECT count(*) FROM consumerkit_outbox_messages",
)
# The rows have their numbers, and some transactions stay open for a while, so later ones commit before them.
_SLOW_OUTBOX = """
    CREATE FUNCTION stress_wait() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF random() < 0.5 THEN PERFORM pg_sleep(0.06); END IF; RETURN NULL; END $$;
    CREATE TRIGGER stress_slow AFTER INSERT ON consumerkit_outbox_messages
        FOR EACH STATEMENT EXECUTE FUNCTION stress_wait()
"""
_SLOW_CLAIMS = """
    CREATE FUNCTION stress_slow_claim() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(0.004); RETURN NEW; END $$;
    CREATE TRIGGER stress_slow_claim BEFORE INSERT ON consumerkit_processed_messages
        FOR EACH ROW EXECUTE FUNCTION stress_slow_claim()
"""


def snapshot_of(results: Sequence[Iterable[Sequence[Any]]]) -> Snapshot:
    """Return what the queries found, in their order."""
    effects, dead, parked, ledger, marks, outbox = results
    return Snapshot(
        effects=[Done(*row) for row in effects],
        dead=[Dead(*row) for row in dead],
        parked=[Parked(*row) for row in parked],
        ledger={str(row[0]): int(row[1]) for row in ledger},
        marks={int(row[0]): int(row[1]) for row in marks},
        outbox=int(next(iter(outbox))[0]),
    )


class Store(Protocol):
    """Where a run keeps its data.

    Attributes:
        url: For workers.
        dsn: For another session; empty where there is no server.
    """

    url: str
    dsn: str

    def snapshot(self) -> Snapshot:
        """Return everything in the database at one moment."""
        ...

    def terminate(self, *, busy: bool) -> int:
        """End connections of others, only those with a transaction where `busy`; return how many."""
        ...

    def backup(self) -> None:
        """Make a backup."""

    def restore(self) -> None:
        """Restore the backup."""

    def deadlocks(self) -> int:
        """Return how many deadlocks there were."""
        ...


class PostgresStore:
    """A PostgreSQL database."""

    def __init__(self, server: PostgresServer, name: str, driver: str = "psycopg") -> None:
        self.url = server.url(name, driver)
        self.dsn = server.dsn(name)
        self._server = server
        self._name = name
        self._backup: Backup | None = None
        self._deadlocks = 0

    def prepare(self, plan: Plan) -> None:
        """Add the waits and objects that a plan asks for; deadlocks are counted from here on."""
        wants = (
            (plan.slow_outbox, _SLOW_OUTBOX),
            (plan.slow_claims, _SLOW_CLAIMS),
            (bool(plan.message_faults), TABLES),
        )
        with self._connection() as connection:
            for wanted, statements in wants:
                if wanted:
                    connection.execute(statements.encode())
        self._deadlocks = self._counted()

    def snapshot(self) -> Snapshot:
        """See `Store`."""
        with self._connection() as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            with connection.transaction():
                return snapshot_of([connection.execute(query.encode()).fetchall() for query in _QUERIES])

    def terminate(self, *, busy: bool) -> int:
        """See `Store`."""
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
        if busy:
            # A transaction that has written nothing loses nothing.
            query += " AND backend_xid IS NOT NULL"
        with self._connection() as connection:
            return len(connection.execute(query.encode(), [self._name]).fetchall())

    def backup(self) -> None:
        """Make a backup."""
        self._backup = Backup(self._server, self._name)

    def restore(self) -> None:
        """Restore the backup."""
        assert self._backup is not None
        self._backup.restore()

    def deadlocks(self) -> int:
        """See `Store`."""
        return self._counted() - self._deadlocks

    def close(self) -> None:
        """Delete the backup."""
        if self._backup is not None:
            self._backup.drop()

    def _counted(self) -> int:
        with self._connection() as connection:
            row = connection.execute(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            ).fetchone()
        assert row is not None
        return int(row[0])

    def _connection(self) -> psycopg.Connection:
        return psycopg.connect(self._server.dsn(self._name), autocommit=True, connect_timeout=5)


class FileStore:
    """A SQLite file."""

    def __init__(self, file: Path) -> None:
        self.url = f"sqlite:///{file}"
        self.dsn = ""
        self._file = file

    def snapshot(self) -> Snapshot:
        """See `Store`."""
        with closing(sqlite3.connect(self._file, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            return snapshot_of([connection.execute(query).fetchall() for query in _QUERIES])

    def terminate(self, *, busy: bool) -> int:
        """A file has no connections to end."""
        raise NotImplementedError

    def backup(self) -> None:
        """A file's copies are not under test."""
        raise NotImplementedError

    def restore(self) -> None:
        """A file's copies are not under test."""
        raise NotImplementedError

    def deadlocks(self) -> int:
        """See `Store`."""
        return 0

    def close(self) -> None:
        """Do nothing."""


async def create_tables(url: str) -> None:
    """Create consumerkit's tables and the run's own."""
    database = Database(url)
    try:
        await database.run(make_tables)
        await database.run(lambda session: Base.metadata.create_all(session.connection()))
    finally:
        await database.dispose()
