"""The digests of an outbox row's topic and key, computed by the database for an index.

On PostgreSQL, an index on the key itself would refuse a key of 3 kB, and so the user's INSERT.
SQLite has no such limit, and no function that makes a digest: there the index has topic and key
themselves.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import LargeBinary
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement


class TopicDigest(ColumnElement[bytes]):
    """Of the column `topic`."""

    inherit_cache = True
    type = LargeBinary()


class KeyDigest(ColumnElement[bytes]):
    """Of the column `key`; empty for a row without a key, but not for a row with an empty key."""

    inherit_cache = True
    type = LargeBinary()


# Written as PostgreSQL's catalogue shows them, since Alembic compares them with it. `decode` gives
# a text's bytes in the database's encoding; `convert_to` does too, but is not immutable.
_POSTGRESQL = {
    TopicDigest: r"""substring(sha256(decode(replace(topic, '\'::text, '\\'::text), 'escape'::text)), 1, 16)""",
    KeyDigest: r"""COALESCE(substring(sha256(key), 1, 16), '\x'::bytea)""",
}
_SQLITE = {
    TopicDigest: "CAST(topic AS BLOB)",
    KeyDigest: "CAST(CASE WHEN key IS NULL THEN '' ELSE 'k' || hex(key) END AS BLOB)",
}


@compiles(TopicDigest, "postgresql")
@compiles(KeyDigest, "postgresql")
def _postgresql(element: ColumnElement[bytes], compiler: Any, **_: Any) -> str:
    return _POSTGRESQL[type(element)]


@compiles(TopicDigest, "sqlite")
@compiles(KeyDigest, "sqlite")
def _sqlite(element: ColumnElement[bytes], compiler: Any, **_: Any) -> str:
    return _SQLITE[type(element)]
