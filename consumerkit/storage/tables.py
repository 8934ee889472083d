"""The tables: what consumerkit keeps in the user's database.

Migrations live in `consumerkit.storage.migrations`; a test compares them with these definitions.
"""

from __future__ import annotations

import re
import threading
from copy import copy
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    false,
    func,
    text,
)

from consumerkit.errors import ConfigurationError
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage.digests import KeyDigest, TopicDigest
from consumerkit.storage.payload import Sealer

DEFAULT_PREFIX = "consumerkit_"

# SQLite numbers rows by itself only if the key is declared exactly INTEGER.
_Sequence = BigInteger().with_variant(Integer, "sqlite")
_SEALER = ("seal", "unseal")
_Moment = DateTime(timezone=True)
_WHOLE = text("erased_at IS NULL")
_UNDOING = text("undo_at IS NOT NULL")
_MOST_PLACES: Final = 64  # each defines all tables; a service with a schema for each tenant may have thousands
_defining: Final = threading.RLock()


@dataclass(frozen=True)
class Tables:
    """The table definitions under one prefix and schema.

    Args:
        prefix: Put before each table's name.
        schema: The database schema. If None, it is found once, at the start: on PostgreSQL it is
            the first schema of the search path that has the tables, on SQLite the main file.
        sealer: Encrypts the values and headers that are stored; None stores them in the clear.

    Raises:
        ConfigurationError: The prefix or schema is not a plain lower-case name.

    Example:
        >>> Tables(schema="ledger").processed_messages.fullname
        'ledger.consumerkit_processed_messages'
    """

    prefix: str = DEFAULT_PREFIX
    schema: str | None = None
    sealer: Sealer | None = field(default=None, repr=False, compare=False)
    configured: Tables | None = field(default=None, init=False, repr=False, compare=False)
    metadata: MetaData = field(init=False, repr=False, compare=False)
    consumers: Table = field(init=False, repr=False, compare=False)
    processed_messages: Table = field(init=False, repr=False, compare=False)
    message_results: Table = field(init=False, repr=False, compare=False)
    message_steps: Table = field(init=False, repr=False, compare=False)
    dead_letters: Table = field(init=False, repr=False, compare=False)
    outbox_messages: Table = field(init=False, repr=False, compare=False)
    parked_messages: Table = field(init=False, repr=False, compare=False)
    partition_progress: Table = field(init=False, repr=False, compare=False)
    first_runs: Table = field(init=False, repr=False, compare=False)
    lane_progress: Table = field(init=False, repr=False, compare=False)
    operator_actions: Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for what, value in (("prefix", self.prefix), ("schema", self.schema)):
            if value is not None and not re.fullmatch(r"[a-z_][a-z0-9_]{0,30}", value):
                raise ConfigurationError(
                    f"Tables({what}={shown_word(value)}): use up to 31 lower-case letters, digits and underscores, "
                    "the first of them not a digit"
                )
        if self.sealer is not None and not all(callable(getattr(self.sealer, name, None)) for name in _SEALER):
            raise ConfigurationError("Tables(sealer=...): give an object with the methods seal(bytes), unseal(bytes)")

    if not TYPE_CHECKING:  # type checkers report an unknown name

        def __getattr__(self, name: str) -> Any:
            """Define the tables at their first use: SQLAlchemy imports both databases' dialects for them."""
            if name.startswith("__") or name not in _DEFINED:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            with _defining:
                if name not in vars(self):
                    _define(self)
            return vars(self)[name]

    def within(self, schema: str) -> Tables:
        """Return these tables, qualified by the schema in which a database has them; any name is accepted.

        The result's `configured` is these definitions.
        """
        self.metadata  # noqa: B018 - defines them
        places: dict[str, Tables] = vars(self)["_places"]
        if (found := places.get(schema)) is None:
            found = copy(self)
            object.__setattr__(found, "schema", schema)
            object.__setattr__(found, "configured", self.configured or self)
            _define(found)
            if len(places) >= _MOST_PLACES:
                places.clear()
            places[schema] = found
        return found

    def identity(self, table: Table) -> str:
        """Return `schema.table`, from which lock numbers derive: it differs between two services in one database."""
        return table.name if self.schema is None else f"{self.schema}.{table.name}"

    @property
    def version_table(self) -> str:
        """The name of the table in which Alembic keeps our schema's version, apart from the user's own."""
        return f"{self.prefix}alembic_version"


_DEFINED: Final = frozenset(one.name for one in fields(Tables) if not one.init) - {"configured"}


def _define(tables: Tables) -> None:
    metadata = MetaData(schema=tables.schema)
    places: dict[str, Tables] = {}
    made = [make(tables.prefix, metadata) for make in _MAKERS]
    object.__setattr__(tables, "_places", places)
    for table in made:
        object.__setattr__(tables, table.name.removeprefix(tables.prefix), table)
    # Last: if it exists, the others exist too.
    object.__setattr__(tables, "metadata", metadata)


def _consumers(prefix: str, metadata: MetaData) -> Table:
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


def _processed_messages(prefix: str, metadata: MetaData) -> Table:
    """One row for each message ID that was processed or given up; 16 bytes of digest over the raw ID bytes.

    `fingerprint_version` is None for the first version; a row's fingerprint is compared with one of
    the same version.
    """
    return Table(
        f"{prefix}processed_messages",
        metadata,
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("digest", LargeBinary(16), primary_key=True),
        Column("message_id", Text, nullable=False),
        Column("fingerprint", LargeBinary(16), nullable=False),
        Column("outcome", SmallInteger, nullable=False),
        Column("processed_at", _Moment, nullable=False, server_default=func.now()),
        Column("fingerprint_version", SmallInteger),
        Index(f"{prefix}processed_messages_processed_at", "processed_at"),
        sqlite_with_rowid=False,
    )


def _message_results(prefix: str, metadata: MetaData) -> Table:
    return Table(
        f"{prefix}message_results",
        metadata,
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("digest", LargeBinary(16), primary_key=True),
        Column("result", Text, nullable=False),
    )


def _message_steps(prefix: str, metadata: MetaData) -> Table:
    """The record of each message's steps, written in short transactions of their own; see `consumerkit.storage.steps`.

    `owner` is the worker that called the step last; `state` is a `StepState`; `calls` counts how
    often the step was begun; `place` is its position among its message's steps. `undo` is what its
    undo can do, `given` its arguments, and `undo_at` when its undo is tried next. `dead_letter` is
    the letter of its message, `undo_letter` that of its undo.
    """
    return Table(
        f"{prefix}message_steps",
        metadata,
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("digest", LargeBinary(16), primary_key=True),
        Column("step", Text, primary_key=True),
        Column("state", Text, nullable=False),
        Column("owner", LargeBinary(16), nullable=False),
        Column("arguments", LargeBinary(16), nullable=False),
        Column("calls", Integer, nullable=False),
        Column("result", Text),
        Column("started_at", _Moment, nullable=False, server_default=func.now()),
        Column("deadline_at", _Moment, nullable=False),
        Column("ended_at", _Moment),
        Column("generation", Integer, nullable=False, server_default="1"),
        Column("place", Integer, nullable=False, server_default="0"),
        Column("undo", Text),
        Column("given", LargeBinary),
        Column("sealed", Boolean, nullable=False, server_default=false()),
        Column("undo_at", _Moment),
        Column("undo_attempts", Integer, nullable=False, server_default="0"),
        Column("undo_failed_at", _Moment),
        Column("dead_letter", BigInteger),
        Column("undo_letter", BigInteger),
        Index(f"{prefix}message_steps_started_at", "started_at"),
        Index(
            f"{prefix}message_steps_undo_at", "consumer", "undo_at", postgresql_where=_UNDOING, sqlite_where=_UNDOING
        ),
    )


def _dead_letters(prefix: str, metadata: MetaData) -> Table:
    """The whole message with the reason; unique by its place in the log, so that a crash never doubles a letter.

    `state` is dead, redriven (parked again), resolved or discarded; `history` has its earlier
    errors, as JSON. `place` is where its error was raised; error type and place define a group of
    errors.
    """
    return Table(
        f"{prefix}dead_letters",
        metadata,
        Column("id", _Sequence, primary_key=True),
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
        Column("first_failed_at", _Moment),
        Column("dead_at", _Moment, nullable=False, server_default=func.now()),
        Column("fingerprint", LargeBinary(16)),
        Column("place", Text),
        Column("state", Text, nullable=False, server_default="dead"),
        Column("state_at", _Moment),
        Column("redrives", Integer, nullable=False, server_default="0"),
        Column("history", Text, nullable=False, server_default="[]"),
        Column("sealed", Boolean, nullable=False, server_default=false()),
        Column("erased_at", _Moment),
        Column("fingerprint_version", SmallInteger),
        UniqueConstraint("consumer", "topic_id", "partition", "offset", name=f"{prefix}dead_letters_origin"),
        Index(f"{prefix}dead_letters_consumer_reason", "consumer", "reason"),
        Index(f"{prefix}dead_letters_dead_at", "dead_at"),
        Index(f"{prefix}dead_letters_digest", "consumer", "digest"),
        # The rows that still have a payload; erased rows are soon most of the table.
        Index(f"{prefix}dead_letters_payload", "consumer", "id", postgresql_where=_WHOLE, sqlite_where=_WHOLE),
    )


def _outbox_messages(prefix: str, metadata: MetaData) -> Table:
    """Messages to send. The database computes the digests and `place`, so the rows of every program have them.

    `place` is the sequence under a name that the primary key does not have. A statement on digests
    and place can only use the index on them, whatever the statistics say.
    """
    return Table(
        f"{prefix}outbox_messages",
        metadata,
        Column("sequence", _Sequence, primary_key=True),
        Column("topic", Text, nullable=False),
        Column("key", LargeBinary),
        Column("value", LargeBinary),
        Column("headers", Text, nullable=False),
        Column("created_at", _Moment, nullable=False, server_default=func.now()),
        Column("sealed", Boolean, nullable=False, server_default=false()),
        Column("topic_digest", LargeBinary, Computed(TopicDigest())),
        Column("key_digest", LargeBinary, Computed(KeyDigest())),
        Column("place", BigInteger, Computed("sequence")),
        Index(f"{prefix}outbox_messages_queue", "topic_digest", "key_digest", "place"),
        sqlite_autoincrement=True,
    )


def _parked_messages(prefix: str, metadata: MetaData) -> Table:
    """Messages that wait: for their next attempt, or, without a due time, behind another one of their key.

    Their order is that of `id`: a partition's owner parks them in the order of the log. `kind` is
    `message`, or `held` for a dead message whose key's later messages wait. `dead_letter` is the
    letter that a redrive put here.
    """
    return Table(
        f"{prefix}parked_messages",
        metadata,
        Column("id", _Sequence, primary_key=True),
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
        Column("due_at", _Moment),
        Column("first_failed_at", _Moment),
        Column("error_type", Text, nullable=False),
        Column("error", Text, nullable=False),
        Column("stack", Text, nullable=False),
        Column("parked_at", _Moment, nullable=False, server_default=func.now()),
        Column("kind", Text, nullable=False, server_default="message"),
        Column("dead_letter", BigInteger),
        Column("sealed", Boolean, nullable=False, server_default=false()),
        Column("fingerprint_version", SmallInteger),
        UniqueConstraint("consumer", "topic_id", "partition", "offset", name=f"{prefix}parked_messages_origin"),
        Index(f"{prefix}parked_messages_key", "consumer", "topic", "partition", "key_digest", "id"),
        Index(f"{prefix}parked_messages_due", "consumer", "due_at"),
        Index(f"{prefix}parked_messages_digest", "consumer", "digest"),
        Index(f"{prefix}parked_messages_parked_at", "consumer", "parked_at"),
        sqlite_autoincrement=True,
    )


def _partition_progress(prefix: str, metadata: MetaData) -> Table:
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


def _first_runs(prefix: str, metadata: MetaData) -> Table:
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


def _lane_progress(prefix: str, metadata: MetaData) -> Table:
    """The number of each lane's last transaction: a lower number than the lane knows means that commits were lost."""
    return Table(
        f"{prefix}lane_progress",
        metadata,
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("lane", LargeBinary(16), primary_key=True),
        Column("sequence", BigInteger, nullable=False),
        Column("moved_at", _Moment, nullable=False, server_default=func.now()),
    )


def _operator_actions(prefix: str, metadata: MetaData) -> Table:
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


_MAKERS = (
    _consumers,
    _processed_messages,
    _message_results,
    _message_steps,
    _dead_letters,
    _outbox_messages,
    _parked_messages,
    _partition_progress,
    _first_runs,
    _lane_progress,
    _operator_actions,
)
DEFAULT_TABLES = Tables()
