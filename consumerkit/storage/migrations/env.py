"""Alembic's environment for our tables; run by `consumerkit.storage.schema`, never by the `alembic` command.

The schema module hands over, in `config.attributes`: the `Tables`, and either the connection or the dialect's name.
"""

from __future__ import annotations

from typing import Any

from alembic import context

from consumerkit.storage.tables import Tables

given = context.config.attributes
tables: Tables = given["tables"]
options: dict[str, Any] = {
    "target_metadata": tables.metadata,
    "version_table": tables.version_table,
    "version_table_schema": tables.schema,
    # SQLite's DDL is transactional on our connections, which begin transactions explicitly.
    "transactional_ddl": True,
}

if context.is_offline_mode():
    context.configure(dialect_name=given["dialect_name"], literal_binds=True, **options)
    with context.begin_transaction():
        if tables.schema is not None and given["dialect_name"] == "postgresql":
            context.execute(f"CREATE SCHEMA IF NOT EXISTS {tables.schema}")
        context.run_migrations()
else:
    context.configure(connection=given["connection"], on_version_apply=given["on_version_apply"], **options)
    with context.begin_transaction():
        context.run_migrations()
