"""The statements that differ between databases."""

from __future__ import annotations

from consumerkit.errors import ConfigurationError
from consumerkit.storage.dialects.base import (
    RELAY_IDLE,
    Claim,
    ClaimHolder,
    Dialect,
    Kept,
    Limits,
    RelayHolder,
)
from consumerkit.storage.dialects.insertion import insert_if_new
from consumerkit.storage.dialects.settings import SessionSettings
from consumerkit.storage.tables import Tables

__all__ = [
    "RELAY_IDLE",
    "Claim",
    "ClaimHolder",
    "Dialect",
    "Kept",
    "Limits",
    "RelayHolder",
    "SessionSettings",
    "dialect_for",
    "insert_if_new",
]


def dialect_for(name: str, tables: Tables) -> Dialect:
    """Return the dialect for SQLAlchemy's name of a database.

    Raises:
        ConfigurationError: There is no dialect for it.
    """
    # Imported only once the database is known: SQLAlchemy's dialects are a large part of its import
    # time.
    if name == "postgresql":
        from consumerkit.storage.dialects.postgresql import PostgreSQL

        return PostgreSQL(tables)
    if name == "sqlite":
        from consumerkit.storage.dialects.sqlite import SQLite

        return SQLite(tables)
    raise ConfigurationError(f"database: {name!r} is not supported; use PostgreSQL or SQLite")
