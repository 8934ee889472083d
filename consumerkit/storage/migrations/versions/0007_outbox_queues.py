"""The outbox by topic and key: digests of both, made by the database, and an index on them.

Frozen: a later change of `consumerkit.storage.tables` gets a revision of its own.
"""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import MetaData, Table

from consumerkit.storage.tables import Tables

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_POSTGRESQL = r"""
ALTER TABLE {table}
    ADD COLUMN topic_digest bytea GENERATED ALWAYS AS
        (substring(sha256(decode(replace(topic, '\', '\\'), 'escape')), 1, 16)) STORED,
    ADD COLUMN key_digest bytea GENERATED ALWAYS AS
        (COALESCE(substring(sha256(key), 1, 16), '\x'::bytea)) STORED,
    ADD COLUMN place bigint GENERATED ALWAYS AS (sequence) STORED
"""
_COLUMNS_ON_SQLITE = {
    "topic_digest": ("BLOB", "CAST(topic AS BLOB)"),
    "key_digest": ("BLOB", "CAST(CASE WHEN key IS NULL THEN '' ELSE 'k' || hex(key) END AS BLOB)"),
    "place": ("BIGINT", "sequence"),
}
# SQLAlchemy takes a generated column's expression to go on to the end of its line: so each begins a line.
_SQLITE = [
    f"ALTER TABLE {{table}} ADD COLUMN {name}\n {type_} GENERATED ALWAYS AS ({expression}) VIRTUAL"
    for name, (type_, expression) in _COLUMNS_ON_SQLITE.items()
]


def upgrade() -> None:
    tables: Tables = context.config.attributes["tables"]
    name = f"{tables.prefix}outbox_messages"
    dialect = op.get_context().dialect
    preparer = dialect.identifier_preparer
    table = preparer.format_table(Table(name, MetaData(), schema=tables.schema))
    if preparer._double_percents:  # noqa: SLF001 - a statement as text has its percent signs doubled once more
        table = table.replace("%%", "%")
    statements = [_POSTGRESQL] if dialect.name == "postgresql" else _SQLITE
    for statement in statements:
        op.execute(statement.replace("{table}", table))
    op.create_index(f"{name}_queue", name, ["topic_digest", "key_digest", "place"], schema=tables.schema)
