"""The URL of a fresh database of the kind that a fixture's parameter names."""

from pathlib import Path

import pytest

from tests.services import PostgresServer


def fresh_url(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str | None = None, *, sqlite: str = "sqlite"
) -> str:
    """Return the URL of a file for `sqlite`, else that of a database on PostgreSQL.

    Args:
        request: Gives the server, and the kind if that is not given.
        tmp_path: Where the file is.
        kind: `sqlite`, `postgresql`, or a driver for PostgreSQL.
        sqlite: How the URL of a file begins; for tests that make an engine of it by themselves.
    """
    kind = kind or str(request.param)
    if kind == "sqlite":
        return f"{sqlite}:///{tmp_path}/fresh.sqlite"
    server: PostgresServer = request.getfixturevalue("postgres")
    database = request.getfixturevalue("database")
    return server.url(database) if kind == "postgresql" else server.url(database, kind)
