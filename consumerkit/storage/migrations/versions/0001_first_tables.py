"""The first tables: consumers, processed_messages, message_results, dead_letters, outbox_messages.

Frozen: a later change of `consumerkit.storage.tables` gets a revision of its own.
"""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import BigInteger, Column, DateTime, Integer, LargeBinary, SmallInteger, Text, UniqueConstraint, func

from consumerkit.storage.tables import Tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SEQUENCE = BigInteger().with_variant(Integer, "sqlite")
MOMENT = DateTime(timezone=True)


def upgrade() -> None:
    tables: Tables = context.config.attributes["tables"]
    prefix, schema = tables.prefix, tables.schema
    _consumers(prefix, schema)
    _ledger(prefix, schema)
    _dead_letters(prefix, schema)
    _outbox(prefix, schema)


def _consumers(prefix: str, schema: str | None) -> None:
    op.create_table(
        f"{prefix}consumers",
        Column("id", Integer, primary_key=True),
        Column("name", Text, nullable=False, unique=True),
        Column("group_name", Text, nullable=False),
        Column("topics", Text, nullable=False),
        Column("created_at", MOMENT, nullable=False, server_default=func.now()),
        schema=schema,
    )


def _ledger(prefix: str, schema: str | None) -> None:
    op.create_table(
        f"{prefix}processed_messages",
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("digest", LargeBinary(16), primary_key=True),
        Column("message_id", Text, nullable=False),
        Column("fingerprint", LargeBinary(16), nullable=False),
        Column("outcome", SmallInteger, nullable=False),
        Column("processed_at", MOMENT, nullable=False, server_default=func.now()),
        schema=schema,
        sqlite_with_rowid=False,
    )
    op.create_index(
        f"{prefix}processed_messages_processed_at", f"{prefix}processed_messages", ["processed_at"], schema=schema
    )
    op.create_table(
        f"{prefix}message_results",
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("digest", LargeBinary(16), primary_key=True),
        Column("result", Text, nullable=False),
        schema=schema,
    )


def _dead_letters(prefix: str, schema: str | None) -> None:
    table = f"{prefix}dead_letters"
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
        Column("value", LargeBinary),
        Column("headers", Text, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("digest", LargeBinary(16)),
        Column("message_id", Text),
        Column("reason", Text, nullable=False),
        Column("error_type", Text, nullable=False),
        Column("error", Text, nullable=False),
        Column("stack", Text, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("first_failed_at", MOMENT),
        Column("dead_at", MOMENT, nullable=False, server_default=func.now()),
        UniqueConstraint("consumer", "topic_id", "partition", "offset", name=f"{prefix}dead_letters_origin"),
        schema=schema,
    )
    op.create_index(f"{prefix}dead_letters_consumer_reason", table, ["consumer", "reason"], schema=schema)
    op.create_index(f"{prefix}dead_letters_dead_at", table, ["dead_at"], schema=schema)


def _outbox(prefix: str, schema: str | None) -> None:
    op.create_table(
        f"{prefix}outbox_messages",
        Column("sequence", SEQUENCE, primary_key=True),
        Column("topic", Text, nullable=False),
        Column("key", LargeBinary),
        Column("value", LargeBinary),
        Column("headers", Text, nullable=False),
        Column("created_at", MOMENT, nullable=False, server_default=func.now()),
        schema=schema,
        sqlite_autoincrement=True,
    )
