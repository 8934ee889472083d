"""The tables of messages: what became of each, and what waits."""

from __future__ import annotations

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

from consumerkit.storage.digests import KeyDigest, TopicDigest

# SQLite numbers rows by itself only if the key is declared exactly INTEGER.
_Sequence = BigInteger().with_variant(Integer, "sqlite")
_WHOLE = text("erased_at IS NULL")
_UNDOING = text("undo_at IS NOT NULL")
_HOOKED = text("hook_at IS NOT NULL")
_Moment = DateTime(timezone=True)


def processed_messages(prefix: str, metadata: MetaData) -> Table:
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


def message_results(prefix: str, metadata: MetaData) -> Table:
    """What `handle` returned for a message ID, as JSON; for duplicates and for its status."""
    return Table(
        f"{prefix}message_results",
        metadata,
        Column("consumer", Integer, primary_key=True, autoincrement=False),
        Column("digest", LargeBinary(16), primary_key=True),
        Column("result", Text, nullable=False),
    )


def message_steps(prefix: str, metadata: MetaData) -> Table:
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


def dead_letters(prefix: str, metadata: MetaData) -> Table:
    """The whole message with the reason; unique by its place in the log, so that a crash never doubles a letter.

    `state` is dead, redriven (parked again), resolved or discarded; `history` has its earlier
    errors, as JSON. `hook_at` is when the handler's `on_dead_letter` is called for it next, and
    `hook_tries` how often that was tried. `place` is where its error was raised; error type and place define a group of
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
        Column("hook_at", _Moment),
        Column("hook_tries", Integer, nullable=False, server_default="0"),
        UniqueConstraint("consumer", "topic_id", "partition", "offset", name=f"{prefix}dead_letters_origin"),
        Index(f"{prefix}dead_letters_consumer_reason", "consumer", "reason"),
        Index(f"{prefix}dead_letters_dead_at", "dead_at"),
        Index(f"{prefix}dead_letters_digest", "consumer", "digest"),
        Index(f"{prefix}dead_letters_hook_at", "consumer", "hook_at", postgresql_where=_HOOKED, sqlite_where=_HOOKED),
        # The rows that still have a payload; erased rows are soon most of the table.
        Index(f"{prefix}dead_letters_payload", "consumer", "id", postgresql_where=_WHOLE, sqlite_where=_WHOLE),
    )


def outbox_messages(prefix: str, metadata: MetaData) -> Table:
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


def parked_messages(prefix: str, metadata: MetaData) -> Table:
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
