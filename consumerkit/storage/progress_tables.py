"""The tables of handlers, of their positions, and of what operators did."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    false,
    func,
)

# SQLite numbers rows by itself only if the key is declared exactly INTEGER.
_Sequence = BigInteger().with_variant(Integer, "sqlite")
_Moment = DateTime(timezone=True)


def consumers(prefix: str, metadata: MetaData) -> Table:
    """The handlers, each with the group and topics to which it is bound; the other tables name it by its number."""
    return Table(
        f"{prefix}consumers",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("name", Text, nullable=False, unique=True),
        Column("group_name", Text, nullable=False),
        Column("topics", Text, nullable=False),
        Column("created_at", _Moment, nullable=False, server_default=func.now()),
        Column("ordering", Text),
        Column("retention", Integer),
    )


def partition_progress(prefix: str, metadata: MetaData) -> Table:
    """The owner of a partition, and how its previous owners ended.

    The token is random at each take-over, never a counter that a failover could hand out twice.
    `deaths` counts owners in a row that neither gave the partition back nor got any further.
    `suspects` has, as JSON, the offsets that began to run alone and left no trace, and how often
    each did.
    """
    return Table(
        f"{prefix}partition_progress",
        metadata,
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("topic", Text, primary_key=True),
        Column("partition", Integer, primary_key=True, autoincrement=False),
        Column("owner", LargeBinary(16), nullable=False),
        Column("taken_at", _Moment, nullable=False, server_default=func.now()),
        Column("given_back", Boolean, nullable=False, server_default=false()),
        Column("deaths", Integer, nullable=False, server_default="0"),
        Column("suspects", Text, nullable=False, server_default="{}"),
        Column("topic_id", Text),
        Column("start", BigInteger),
        Column("mark", BigInteger),
        Column("marked_at", _Moment),
        Column("window_end", BigInteger),
        Column("window_at", _Moment),
        Column("settled_at", _Moment),
        Column("forgotten_below", BigInteger, nullable=False, server_default="0"),
    )


def first_runs(prefix: str, metadata: MetaData) -> Table:
    """Where a handler's first run on a topic begins: one row for each partition that the topic then had.

    `source` is what decided it: `start`, `end`, `committed` (Kafka's offset), or `mark` (an older
    release had begun). `start` is NULL if the broker could not tell; `asked_at` is when it was
    asked, in milliseconds since 1970.
    """
    return Table(
        f"{prefix}first_runs",
        metadata,
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("topic", Text, primary_key=True),
        Column("topic_id", Text, primary_key=True),
        Column("partition", Integer, primary_key=True, autoincrement=False),
        Column("source", Text, nullable=False),
        Column("start", BigInteger),
        Column("asked_at", BigInteger, nullable=False),
    )


def lane_progress(prefix: str, metadata: MetaData) -> Table:
    """The number of each lane's last transaction: a lower number than the lane knows means that commits were lost."""
    return Table(
        f"{prefix}lane_progress",
        metadata,
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("lane", LargeBinary(16), primary_key=True),
        Column("sequence", BigInteger, nullable=False),
        Column("moved_at", _Moment, nullable=False, server_default=func.now()),
    )


def operator_actions(prefix: str, metadata: MetaData) -> Table:
    """What people did to messages and positions: who, when, what, and to what, as JSON."""
    return Table(
        f"{prefix}operator_actions",
        metadata,
        Column("id", _Sequence, primary_key=True),
        Column("at", _Moment, nullable=False, server_default=func.now()),
        Column("actor", Text, nullable=False),
        Column("action", Text, nullable=False),
        Column("consumer", Integer),
        Column("details", Text, nullable=False, server_default="{}"),
        Index(f"{prefix}operator_actions_at", "at"),
    )
