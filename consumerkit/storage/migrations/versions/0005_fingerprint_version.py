"""The version in which each fingerprint was made; rows that are there have the first.

Frozen: a later change of `consumerkit.storage.tables` gets a revision of its own.
"""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import Column, SmallInteger

from consumerkit.storage.tables import Tables

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    tables: Tables = context.config.attributes["tables"]
    for name in ("processed_messages", "parked_messages", "dead_letters"):
        op.add_column(f"{tables.prefix}{name}", Column("fingerprint_version", SmallInteger), schema=tables.schema)
