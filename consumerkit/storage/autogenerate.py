"""A filter for a user's own Alembic: its autogenerate ignores consumerkit's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from consumerkit.storage.tables import DEFAULT_TABLES, Tables


def alembic_filter(
    tables: Tables = DEFAULT_TABLES,
) -> Callable[[str | None, str, Mapping[Any, str | None]], bool]:
    """Return an `include_name` for the `env.py` of your Alembic project.

    With it, `alembic revision --autogenerate` does not see consumerkit's tables and writes no
    revision that drops them. They have their own migrations and their own version table.

    Args:
        tables: The definitions that the worker uses, if its prefix or schema is not the default.

    Example:
        >>> include_name = alembic_filter()
        >>> include_name("consumerkit_consumers", "table", {"schema_name": None})
        False
        >>> include_name("accounts", "table", {"schema_name": None})
        True

    In `env.py`: `context.configure(connection=connection, target_metadata=metadata, include_name=alembic_filter())`.
    Combine it with an `include_name` of your own by `and`.
    """
    ours = {table.name for table in tables.metadata.tables.values()} | {tables.version_table}

    def include_name(name: str | None, type_: str, parent_names: Mapping[Any, str | None]) -> bool:
        if type_ != "table" or name not in ours:
            return True
        # Without a name it is the connection's default schema, which may have our tables too.
        schema = parent_names.get("schema_name")
        return schema is not None and tables.schema is not None and schema != tables.schema

    return include_name
