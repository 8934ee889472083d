"""Identifies one handler's rows: what the statements on them need to know."""

from __future__ import annotations

from dataclasses import dataclass

from consumerkit.storage.dialects import Dialect
from consumerkit.storage.tables import Tables


@dataclass(frozen=True, slots=True)
class Store:
    """One handler's rows in one database.

    Attributes:
        tables: The table definitions.
        dialect: The database's dialect.
        consumer: The handler's number.
    """

    tables: Tables
    dialect: Dialect
    consumer: int
