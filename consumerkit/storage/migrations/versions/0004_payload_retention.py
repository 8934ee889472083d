"""Indexes by which what has stood for too long is found, and the parked messages of an ID.

Frozen: a later change of `consumerkit.storage.tables` gets a revision of its own.
"""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import text

from consumerkit.storage.tables import Tables

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    tables: Tables = context.config.attributes["tables"]
    parked, letters = f"{tables.prefix}parked_messages", f"{tables.prefix}dead_letters"
    op.create_index(f"{parked}_digest", parked, ["consumer", "digest"], schema=tables.schema)
    op.create_index(f"{parked}_parked_at", parked, ["consumer", "parked_at"], schema=tables.schema)
    whole = text("erased_at IS NULL")
    op.create_index(
        f"{letters}_payload",
        letters,
        ["consumer", "id"],
        schema=tables.schema,
        postgresql_where=whole,
        sqlite_where=whole,
    )
