"""What `on_dead_letter` needs: when a dead letter is given to it next, and how often that was tried.

Frozen: a later change of `consumerkit.storage.tables` gets a revision of its own.
"""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import Column, DateTime, Integer, text

from consumerkit.storage.tables import Tables

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    tables: Tables = context.config.attributes["tables"]
    name = f"{tables.prefix}dead_letters"
    op.add_column(name, Column("hook_at", DateTime(timezone=True)), schema=tables.schema)
    op.add_column(name, Column("hook_tries", Integer, nullable=False, server_default="0"), schema=tables.schema)
    waits = text("hook_at IS NOT NULL")
    op.create_index(
        f"{name}_hook_at",
        name,
        ["consumer", "hook_at"],
        schema=tables.schema,
        postgresql_where=waits,
        sqlite_where=waits,
    )
