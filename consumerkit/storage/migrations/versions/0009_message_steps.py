"""What each message's steps came to: message_steps.

Frozen: a later change of `consumerkit.storage.tables` gets a revision of its own.
"""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import Column, DateTime, Integer, LargeBinary, Text, func

from consumerkit.storage.tables import Tables

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    tables: Tables = context.config.attributes["tables"]
    name = f"{tables.prefix}message_steps"
    op.create_table(
        name,
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("digest", LargeBinary(16), primary_key=True),
        Column("step", Text, primary_key=True),
        Column("state", Text, nullable=False),
        Column("owner", LargeBinary(16), nullable=False),
        Column("arguments", LargeBinary(16), nullable=False),
        Column("calls", Integer, nullable=False),
        Column("result", Text),
        Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
        Column("deadline_at", DateTime(timezone=True), nullable=False),
        Column("ended_at", DateTime(timezone=True)),
        schema=tables.schema,
    )
    op.create_index(f"{name}_started_at", name, ["started_at"], schema=tables.schema)
