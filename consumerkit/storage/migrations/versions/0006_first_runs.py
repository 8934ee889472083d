"""Where the first run on a topic begins, decided once for all of its partitions: first_runs.

What an older release has begun counts as decided, so that nothing is decided a second time.

Frozen: a later change of `consumerkit.storage.tables` gets a revision of its own.
"""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, func, insert, literal, select

from consumerkit.storage.tables import Tables

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    tables: Tables = context.config.attributes["tables"]
    prefix, schema = tables.prefix, tables.schema
    first_runs = op.create_table(
        f"{prefix}first_runs",
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("topic", Text, primary_key=True),
        Column("topic_id", Text, primary_key=True),
        Column("partition", Integer, primary_key=True, autoincrement=False),
        Column("source", Text, nullable=False),
        Column("start", BigInteger),
        Column("asked_at", BigInteger, nullable=False),
        schema=schema,
    )
    names = ("consumer", "topic", "topic_id", "partition")
    old = Table(
        f"{prefix}partition_progress",
        MetaData(),
        *(Column(name, Integer if name in ("consumer", "partition") else Text) for name in names),
        Column("start", BigInteger),
        Column("mark", BigInteger),
        schema=schema,
    )
    begun = select(
        *(old.c[name] for name in names), literal("mark"), func.coalesce(old.c.start, old.c.mark), literal(0)
    ).where(old.c.mark.is_not(None), old.c.topic_id.is_not(None))
    op.execute(insert(first_runs).from_select([*names, "source", "start", "asked_at"], begun))
