"""A backup of a PostgreSQL database, and its restoration while others use it."""

from __future__ import annotations

import psycopg
from psycopg import sql

from tests.services import PostgresServer


class Backup:
    """Copies a database as it is now; workers that are connected see an outage, as at a failover."""

    def __init__(self, postgres: PostgresServer, database: str) -> None:
        self._postgres = postgres
        self._database = database
        self._copy = f"{database}_copy"
        self._replace(self._copy, by=database)

    def restore(self) -> None:
        """Restore the database; everything since the backup is lost."""
        self._replace(self._database, by=self._copy)

    def drop(self) -> None:
        """Drop the copy."""
        with self._connection() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self._copy)))

    def _replace(self, name: str, *, by: str) -> None:
        with self._connection() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(by)))
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [by])
            copy = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(by))
            _keep_trying(connection, copy)
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(by)))

    def _connection(self) -> psycopg.Connection:
        return psycopg.connect(self._postgres.dsn("postgres"), autocommit=True)


def _keep_trying(connection: psycopg.Connection, statement: sql.Composed) -> None:
    """Run a statement until the ended connections are gone."""
    for _ in range(50):
        try:
            connection.execute(statement)
        except psycopg.errors.ObjectInUse:
            connection.execute("SELECT pg_sleep(0.1)")
        else:
            return
    raise AssertionError("the database stays in use")
