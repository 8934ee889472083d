"""A stage whose database is a real PostgreSQL, and how a test looks into it while workers run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from tests.integration.inspector import Inspector
from tests.integration.stage import Stage
from tests.services import PostgresServer


class PostgresStage(Stage):
    """A database of its own on a real server."""

    postgres: PostgresServer
    database: str
    _inspector: Inspector | None = None

    @property
    def url(self) -> str:
        return self.postgres.url(self.database)

    def _made_inspector(self) -> Inspector:
        return Inspector(self.postgres.dsn(self.database), "")

    @contextmanager
    def _inspected(self, *, kept: bool = False) -> Iterator[Inspector]:
        """Look over connections that are kept for the block, or for as long as a worker runs where a stage says so."""
        if self._inspector is not None:
            yield self._inspector
            return
        with self._made_inspector() as inspector:
            self._inspector = inspector if kept else None
            try:
                yield inspector
            finally:
                self._inspector = None if kept else self._inspector

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Ask the database."""
        with self._inspected() as inspector:
            return inspector.rows(query)

    def execute(self, *statements: str) -> None:
        """Change the database without the worker's knowledge."""
        with psycopg.connect(self.postgres.dsn(self.database), autocommit=True, connect_timeout=30) as connection:
            for statement in statements:
                connection.execute(statement.encode())
