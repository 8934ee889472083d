"""What the undo of a step needs: message_steps has the generation, the arguments, and when the undo is tried next.

Frozen: a later change of `consumerkit.storage.tables` gets a revision of its own.
"""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Integer, LargeBinary, Text, false, text

from consumerkit.storage.tables import Tables

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    tables: Tables = context.config.attributes["tables"]
    name = f"{tables.prefix}message_steps"
    for column in (
        Column("generation", Integer, nullable=False, server_default="1"),
        Column("place", Integer, nullable=False, server_default="0"),
        Column("undo", Text),
        Column("given", LargeBinary),
        Column("sealed", Boolean, nullable=False, server_default=false()),
        Column("undo_at", DateTime(timezone=True)),
        Column("undo_attempts", Integer, nullable=False, server_default="0"),
        Column("undo_failed_at", DateTime(timezone=True)),
        Column("dead_letter", BigInteger),
        Column("undo_letter", BigInteger),
    ):
        op.add_column(name, column, schema=tables.schema)
    waits = text("undo_at IS NOT NULL")
    op.create_index(
        f"{name}_undo_at",
        name,
        ["consumer", "undo_at"],
        schema=tables.schema,
        postgresql_where=waits,
        sqlite_where=waits,
    )
