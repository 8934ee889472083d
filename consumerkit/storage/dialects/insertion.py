"""Inserts a row unless its key exists; each database has its own syntax for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, Connection, Table


def insert_if_new(
    connection: Connection, table: Table, values: dict[str, Any], *, key: Sequence[Column[Any]], returning: Column[Any]
) -> Any | None:
    """Insert `values` unless a row with the same `key` exists; return `returning` of the new row, or None."""
    # Imported here: they take as long to import as all our own modules.
    from sqlalchemy.dialects import postgresql, sqlite

    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = make(table).values(values).on_conflict_do_nothing(index_elements=key).returning(returning)
    return connection.execute(statement).scalar_one_or_none()
