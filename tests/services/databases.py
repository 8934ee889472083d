"""Databases for tests, used again and again: a new one costs the server a tenth of a second of computing.

Each is lent under a name of its own, so that what a test has left running meets nothing of the next one's.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from psycopg import sql

from tests.services.postgres import PostgresServer

_TIMEOUT = 60.0
_SESSIONS = "FROM pg_stat_activity WHERE datname = %s"
_SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
# As template0 has it.
_PUBLIC = """
    CREATE SCHEMA public AUTHORIZATION pg_database_owner;
    GRANT ALL ON SCHEMA public TO pg_database_owner;
    GRANT USAGE ON SCHEMA public TO PUBLIC
"""
# The roles for which something is set in a database alone.
_ROLES = """
    SELECT r.rolname FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
    JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datname = %s
"""


class Databases:
    """Lends empty databases of one server."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._spare: list[str] = []

    @contextmanager
    def lend(self) -> Iterator[str]:
        """An empty database; yields its name."""
        name = self._spare.pop() if self._spare else self._server.create_database()
        try:
            yield name
        finally:
            self._take_back(name)

    def close(self) -> None:
        """Drop the databases that are not in use."""
        while self._spare:
            self._server.drop_database(self._spare.pop())

    def _take_back(self, name: str) -> None:
        fresh = f"ck_{uuid4().hex[:12]}"
        try:
            self._rename(name, fresh)
            self._empty(fresh)
        except (psycopg.Error, TimeoutError):  # a test may have done anything with it
            self._server.drop_database(name)
            self._server.drop_database(fresh)
        else:
            self._spare.append(fresh)

    def _rename(self, name: str, fresh: str) -> None:
        was, becomes = sql.Identifier(name), sql.Identifier(fresh)
        with psycopg.connect(self._server.admin_dsn, autocommit=True, connect_timeout=10) as admin:
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(was))
            end = time.monotonic() + _TIMEOUT
            while admin.execute(f"SELECT pg_terminate_backend(pid) {_SESSIONS}", [name]).fetchall():
                if time.monotonic() > end:
                    raise TimeoutError
                time.sleep(0.01)
            admin.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(was, becomes))
            admin.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(becomes))
            for (role,) in admin.execute(_ROLES, [fresh]).fetchall():
                admin.execute(sql.SQL("ALTER ROLE {} IN DATABASE {} RESET ALL").format(sql.Identifier(role), becomes))
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(becomes))

    def _empty(self, name: str) -> None:
        with psycopg.connect(self._server.dsn(name), autocommit=True, connect_timeout=10) as connection:
            schemas = [str(found) for (found,) in connection.execute(_SCHEMAS).fetchall()]
            connection.execute(
                sql.SQL("DROP SCHEMA {} CASCADE;").format(sql.SQL(", ").join(map(sql.Identifier, schemas)))
            )
            connection.execute(_PUBLIC)
