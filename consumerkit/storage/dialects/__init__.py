"""What differs between databases; the only place that knows one."""

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
        ConfigurationError: There is none.
    """
    # Imported when it is known which one is used: SQLAlchemy's own dialects take a good part of its import.
    if name == "postgresql":
        from consumerkit.storage.dialects.postgresql import PostgreSQL

        return PostgreSQL(tables)
    if name == "sqlite":
        from consumerkit.storage.dialects.sqlite import SQLite

        return SQLite(tables)
    raise ConfigurationError(f"database: {name!r} is not supported; use PostgreSQL or SQLite")
