"""Dead letters that come back, and a position kept in the database: lane_progress, operator_actions, many columns.

Frozen: a later change of `consumerkit.storage.tables` gets a revision of its own.
"""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Integer, LargeBinary, Text, false, func

from consumerkit.storage.tables import Tables

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SEQUENCE = BigInteger().with_variant(Integer, "sqlite")
MOMENT = DateTime(timezone=True)


def upgrade() -> None:
    tables: Tables = context.config.attributes["tables"]
    prefix, schema = tables.prefix, tables.schema
    for table, columns in _columns().items():
        for column in columns:
            op.add_column(f"{prefix}{table}", column, schema=schema)
    op.create_index(f"{prefix}dead_letters_digest", f"{prefix}dead_letters", ["consumer", "digest"], schema=schema)
    _lane_progress(prefix, schema)
    _operator_actions(prefix, schema)


def _columns() -> dict[str, list[Column[object]]]:
    return {
        "consumers": [Column("ordering", Text)],
        "dead_letters": [
            Column("fingerprint", LargeBinary(16)),
            Column("place", Text),
            Column("state", Text, nullable=False, server_default="dead"),
            Column("state_at", MOMENT),
            Column("redrives", Integer, nullable=False, server_default="0"),
            Column("history", Text, nullable=False, server_default="[]"),
            Column("sealed", Boolean, nullable=False, server_default=false()),
            Column("erased_at", MOMENT),
        ],
        "outbox_messages": [Column("sealed", Boolean, nullable=False, server_default=false())],
        "parked_messages": [
            Column("kind", Text, nullable=False, server_default="message"),
            Column("dead_letter", BigInteger),
            Column("sealed", Boolean, nullable=False, server_default=false()),
        ],
        "partition_progress": [
            Column("topic_id", Text),
            Column("start", BigInteger),
            Column("mark", BigInteger),
            Column("marked_at", MOMENT),
            Column("window_end", BigInteger),
            Column("window_at", MOMENT),
            Column("settled_at", MOMENT),
            Column("forgotten_below", BigInteger, nullable=False, server_default="0"),
        ],
    }


def _lane_progress(prefix: str, schema: str | None) -> None:
    op.create_table(
        f"{prefix}lane_progress",
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("lane", LargeBinary(16), primary_key=True),
        Column("sequence", BigInteger, nullable=False),
        Column("moved_at", MOMENT, nullable=False, server_default=func.now()),
        schema=schema,
    )


def _operator_actions(prefix: str, schema: str | None) -> None:
    table = f"{prefix}operator_actions"
    op.create_table(
        table,
        Column("id", SEQUENCE, primary_key=True),
        Column("at", MOMENT, nullable=False, server_default=func.now()),
        Column("actor", Text, nullable=False),
        Column("action", Text, nullable=False),
        Column("consumer", Integer),
        Column("details", Text, nullable=False, server_default="{}"),
        schema=schema,
    )
    op.create_index(f"{table}_at", table, ["at"], schema=schema)
