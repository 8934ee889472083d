"""For how long the keys of a name are kept that no message brings, such as those of requests over HTTP.

Frozen: a later change of `consumerkit.storage.tables` gets a revision of its own.
"""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import Column, Integer

from consumerkit.storage.tables import Tables

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    tables: Tables = context.config.attributes["tables"]
    op.add_column(f"{tables.prefix}consumers", Column("retention", Integer), schema=tables.schema)
