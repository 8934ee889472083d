"""Our tables in the user's database: creates, upgrades and checks them."""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, column, inspect, select, table, text
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema

from consumerkit.errors import ConfigurationError, StartError
from consumerkit.storage.database import Database
from consumerkit.storage.location import located
from consumerkit.storage.tables import DEFAULT_TABLES, Tables

if TYPE_CHECKING:  # its import takes a third of SQLAlchemy's time, and a running worker needs it once
    from alembic.config import Config
    from alembic.migration import MigrationContext

_MIGRATIONS = Path(__file__).with_name("migrations")
_DIALECTS = ("postgresql", "sqlite")


def upgrade(database: Database, tables: Tables = DEFAULT_TABLES) -> list[str]:
    """Create our tables, or bring them up to date; return the revisions that were applied, oldest first.

    All in one transaction. Several processes may call it at once; all but the first find nothing to
    do. Do not call it within an event loop: there, use
    `await database.run(lambda session: apply(session, tables))`.

    Raises:
        ConfigurationError: A migration of your own Alembic is running; this would not be part of
            its transaction.
        StartError: The tables are of a newer consumerkit.
        DBAPIError: The database is out of reach, or refuses.
    """
    if _running_migration() is not None:
        raise ConfigurationError(
            "schema.upgrade() within an Alembic migration would commit by itself, even if the migration fails; write "
            "schema.apply(Session(op.get_bind())) to use the migration's transaction"
        )
    return database.run_blocking(lambda session: apply(session, tables))


def apply(session: Session, tables: Tables = DEFAULT_TABLES) -> list[str]:
    """Do the work of `upgrade` in the caller's transaction; the caller commits.

    On PostgreSQL a transaction that has begun must be `READ COMMITTED`.

    Example:
        def upgrade() -> None:  # in a migration of your own
            schema.apply(Session(op.get_bind()))

    Raises:
        StartError: The tables are of a newer consumerkit.
        DBAPIError: The database refuses.
    """
    from alembic import command

    connection, tables = _locked(session, tables)
    _make_schema(connection, tables)
    _refuse_newer(_heads(connection, tables), tables)
    applied: list[str] = []
    config = _config(tables)
    config.attributes["connection"] = connection
    config.attributes["on_version_apply"] = lambda *, step, **_: applied.append(step.up_revision_id)
    outer = _running_migration()
    try:
        command.upgrade(config, "head")
    finally:
        if outer is not None:
            _resume(outer)
    return applied


def _running_migration() -> MigrationContext | None:
    """Return the context of the running Alembic migration, if there is one."""
    from alembic import op

    try:
        found = op.get_context()
    except (NameError, AttributeError):  # Alembic raises these if none has run, and if none runs any more
        return None
    # Alembic keeps the context of a migration that failed; only the connection shows that it is
    # over.
    return found if found.connection is not None and not found.connection.closed else None


def _resume(outer: MigrationContext) -> None:
    """Point `alembic.context` and `alembic.op` at a migration again, since ours replaced it."""
    from alembic.operations import Operations

    environment = outer.environment_context
    if environment is not None:
        environment.__enter__()
    Operations.context(outer).__enter__()


def upgrade_sql(dialect_name: str, tables: Tables = DEFAULT_TABLES) -> str:
    """Return the SQL that creates our tables in an empty database, in one transaction, for a person to run.

    Args:
        dialect_name: "postgresql" or "sqlite".
        tables: The table definitions.

    Raises:
        ConfigurationError: Another dialect.
    """
    from alembic import command

    if dialect_name not in _DIALECTS:
        raise ConfigurationError(f"database: {dialect_name!r} is not supported; use {' or '.join(_DIALECTS)}")
    written = io.StringIO()
    config = _config(tables, written)
    config.attributes["dialect_name"] = dialect_name
    command.upgrade(config, "head", sql=True)
    return written.getvalue().strip() + "\n"


def check(session: Session, tables: Tables = DEFAULT_TABLES) -> None:
    """Check that our tables exist in the version that this consumerkit needs.

    Raises:
        StartError: They are missing, older or newer; one line says what to do.
    """
    connection = session.connection()
    tables = located(connection, tables)
    heads, wanted = _heads(connection, tables), _wanted()
    _refuse_newer(heads, tables)
    if not heads:
        raise StartError(f"database: consumerkit's tables ({_place(tables)}) are missing; run consumerkit db upgrade")
    if heads != wanted:
        raise StartError(
            f"database: consumerkit's tables ({_place(tables)}) are at revision {_joined(heads)} and must be at "
            f"{_joined(wanted)}; run consumerkit db upgrade"
        )
    there = set(inspect(connection).get_table_names(schema=tables.schema))
    gone = sorted(table.name for table in tables.metadata.tables.values() if table.name not in there)
    if gone:
        raise StartError(
            f"database: {', '.join(gone)} is missing, and {tables.version_table} says that it exists: somebody "
            "dropped it; restore it from a backup"
        )


def _locked(session: Session, tables: Tables) -> tuple[Connection, Tables]:
    """Keep other upgrades of the same tables out until the transaction ends."""
    dialect = session.get_bind().dialect.name
    if dialect != "postgresql":
        connection = session.connection()  # SQLite: every transaction of ours begins as the only writer
        return connection, located(connection, tables)
    # A snapshot taken before the lock was granted would not show what the previous holder did.
    bind = session.get_bind()
    if isinstance(bind, Connection) and bind.in_transaction():
        connection = session.connection()
        if (level := connection.get_isolation_level()) != "READ COMMITTED":
            raise StartError(
                f"database: consumerkit's tables are made in READ COMMITTED, and this transaction is {level}"
            )
    else:
        connection = session.connection(execution_options={"isolation_level": "READ COMMITTED"})
    found = located(connection, tables)
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _lock_key(found)})
    return connection, found


def _make_schema(connection: Connection, tables: Tables) -> None:
    if tables.schema is None or connection.dialect.name != "postgresql":
        return
    # Check first: CREATE SCHEMA IF NOT EXISTS needs the right to create even if the schema exists.
    if not inspect(connection).has_schema(tables.schema):
        connection.execute(CreateSchema(tables.schema))


def _lock_key(tables: Tables) -> int:
    name = f"consumerkit db upgrade {tables.schema or ''}.{tables.version_table}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)


def _config(tables: Tables, written: io.StringIO | None = None) -> Config:
    from alembic.config import Config

    config = Config(output_buffer=written) if written is not None else Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes["tables"] = tables
    return config


# A start of a worker only reads revisions. Alembic, whose import takes a tenth of a second, writes them.


@functools.cache  # a process's migrations do not change
def _known() -> list[str]:
    """Return the revisions that this consumerkit has, oldest first: each file's name begins with its revision."""
    return sorted(file.name.partition("_")[0] for file in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


def _wanted() -> set[str]:
    return {_known()[-1]}


def _heads(connection: Connection, tables: Tables) -> set[str]:
    if not inspect(connection).has_table(tables.version_table, schema=tables.schema):
        return set()
    versions = table(tables.version_table, column("version_num"), schema=tables.schema)
    return set(connection.scalars(select(versions.c.version_num)))


def _refuse_newer(heads: set[str], tables: Tables) -> None:
    unknown = heads - set(_known())
    if unknown:
        raise StartError(
            f"database: consumerkit's tables ({_place(tables)}) are at revision {_joined(unknown)}, which this "
            "version of consumerkit does not know; install the newer version that created them"
        )


def _joined(revisions: set[str]) -> str:
    return ", ".join(sorted(revisions))


def _place(tables: Tables) -> str:
    if tables.configured is not None and tables.schema in ("public", "main"):
        tables = tables.configured  # as people know them
    return f"{tables.schema}.{tables.prefix}*" if tables.schema else f"{tables.prefix}*"
