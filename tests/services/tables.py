"""Our tables by the SQL that the migrations write down once per process.

Alembic reads and compiles its files again for each database: a quarter of what a small test takes, measured.
`tests/integration/test_migrations.py` holds that both ways make the same tables.
"""

import functools
import re

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from consumerkit.storage import schema
from consumerkit.storage.tables import DEFAULT_TABLES, Tables

_NOISE = re.compile(r"^(--.*|BEGIN;|COMMIT;)$", re.MULTILINE)


def make_tables(session: Session, tables: Tables = DEFAULT_TABLES) -> None:
    """Make what `schema.apply` makes, unless tables of some release are there."""
    connection = session.connection()
    if inspect(connection).has_table(tables.version_table, schema=tables.schema):
        return
    for statement in _statements(connection.dialect.name, tables):
        connection.exec_driver_sql(statement)


@functools.cache
def _statements(dialect: str, tables: Tables) -> list[str]:
    script = _NOISE.sub("", schema.upgrade_sql(dialect, tables))
    return [statement for part in script.split(";\n") if (statement := part.strip())]
