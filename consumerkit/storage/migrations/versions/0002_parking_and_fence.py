"""Parking and the fence: parked_messages, partition_progress.

Frozen: a later change of `consumerkit.storage.tables` gets a revision of its own.
"""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Integer, LargeBinary, Text, UniqueConstraint, false, func

from consumerkit.storage.tables import Tables

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SEQUENCE = BigInteger().with_variant(Integer, "sqlite")
MOMENT = DateTime(timezone=True)


def upgrade() -> None:
    tables: Tables = context.config.attributes["tables"]
    _parked_messages(tables.prefix, tables.schema)
    _partition_progress(tables.prefix, tables.schema)


def _parked_messages(prefix: str, schema: str | None) -> None:
    table = f"{prefix}parked_messages"
    op.create_table(
        table,
        Column("id", SEQUENCE, primary_key=True),
        Column("consumer", Integer, nullable=False),
        Column("topic", Text, nullable=False),
        Column("topic_id", Text, nullable=False),
        Column("partition", Integer, nullable=False),
        Column("offset", BigInteger, nullable=False),
        Column("timestamp", BigInteger, nullable=False),
        Column("key", LargeBinary),
        Column("key_digest", LargeBinary(16)),
        Column("value", LargeBinary),
        Column("headers", Text, nullable=False),
        Column("digest", LargeBinary(16)),
        Column("message_id", Text, nullable=False),
        Column("fingerprint", LargeBinary(16), nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("deliveries", Integer, nullable=False, server_default="0"),
        Column("due_at", MOMENT),
        Column("first_failed_at", MOMENT),
        Column("error_type", Text, nullable=False),
        Column("error", Text, nullable=False),
        Column("stack", Text, nullable=False),
        Column("parked_at", MOMENT, nullable=False, server_default=func.now()),
        UniqueConstraint("consumer", "topic_id", "partition", "offset", name=f"{table}_origin"),
        schema=schema,
        sqlite_autoincrement=True,
    )
    op.create_index(f"{table}_key", table, ["consumer", "topic", "partition", "key_digest", "id"], schema=schema)
    op.create_index(f"{table}_due", table, ["consumer", "due_at"], schema=schema)


def _partition_progress(prefix: str, schema: str | None) -> None:
    op.create_table(
        f"{prefix}partition_progress",
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("topic", Text, primary_key=True),
        Column("partition", Integer, primary_key=True, autoincrement=False),
        Column("owner", LargeBinary(16), nullable=False),
        Column("taken_at", MOMENT, nullable=False, server_default=func.now()),
        Column("given_back", Boolean, nullable=False, server_default=false()),
        Column("deaths", Integer, nullable=False, server_default="0"),
        Column("suspects", Text, nullable=False, server_default="{}"),
        schema=schema,
    )
