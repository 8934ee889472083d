"""Tells from any session what state a message ID has with a handler."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, NamedTuple, overload
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.handler import AnyHandler, BatchHandler, Handler
from consumerkit.handlers.message_id import Identity, encode_field, possible_digests, shown, topic_scope
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.location import located_for
from consumerkit.storage.status import MessageStatus, Search
from consumerkit.storage.tables import DEFAULT_TABLES, Tables

Asked = AnyHandler | type[Handler[Any]] | type[BatchHandler[Any]] | str
Part = str | bytes | int | UUID


@overload
def message_status(
    session: AsyncSession,
    handler: Asked,
    *id: Part,
    topic: str | None = None,
    probe: bool = True,
    tables: Tables = DEFAULT_TABLES,
) -> Coroutine[Any, Any, MessageStatus]: ...


@overload
def message_status(
    session: Session,
    handler: Asked,
    *id: Part,
    topic: str | None = None,
    probe: bool = True,
    tables: Tables = DEFAULT_TABLES,
) -> MessageStatus: ...


def message_status(
    session: AsyncSession | Session,
    handler: Asked,
    *id: Part,
    topic: str | None = None,
    probe: bool = True,
    tables: Tables = DEFAULT_TABLES,
) -> Coroutine[Any, Any, MessageStatus] | MessageStatus:
    """Tell whether a message was processed, is parked, dead, in flight, or unknown.

    It reads in the session's transaction and flushes nothing. Within a handler's own session, the
    messages of its batch already count as processed.

    A message that a worker is handling has its claim in an uncommitted transaction. On PostgreSQL,
    where the ledger has no row, this call finds the claim by trying it in a savepoint that is
    rolled back. The probe waits at most 10 ms, leaves nothing behind, and costs a transaction ID:
    give `probe=False` if you often ask about messages that do not exist. The probe is not possible
    in a read-only or serializable transaction, in autocommit, without the right to insert, or on
    SQLite: `MessageStatus.probed` is then False.

    Args:
        session: Any session. With an `AsyncSession` the call must be awaited.
        handler: The handler, its class, or its name. With only the name, a single part counts as
            one header or field (or as `coordinates()` if it looks like
            `topic-id/partition/offset`), and several parts as several headers or fields together.
        id: The parts of the message ID. An ID of `coordinates()` is one part:
            "topic-id/partition/offset".
        topic: The message's topic, for a handler of several topics with `scope = "topic"`.
        probe: Whether to look for a message in flight.
        tables: The table definitions, if they are not the default ones; as for `outbox.publish`.

    Raises:
        ConfigurationError: The handler has no name or identity, or its ID has another number of
            parts; the topic is missing or is not the handler's; or the session does not find
            consumerkit's tables.

    Example:
        status = await message_status(session, CreditAccount, "pay-1")
        if status.state is MessageState.PROCESSED:
            return status.result
    """
    address = address_of(handler, id, topic)

    def look(sync: Session) -> MessageStatus:
        connection, found = sync.connection(), located_for(sync, tables)
        dialect = dialect_for(connection.dialect.name, found)
        return Search(connection, found, dialect, address.handler, address.message_id, address.digests, probe).status()

    return session.run_sync(look) if isinstance(session, AsyncSession) else look(session)


class IdPlace(NamedTuple):
    """Where an ID is looked up: the handler's name, and the ledger's possible keys."""

    handler: str
    message_id: str
    digests: tuple[bytes, ...]


def address_of(handler: Asked, id: tuple[Part, ...], topic: str | None) -> IdPlace:
    """Return where to look an ID up; see `message_status`.

    Raises:
        ConfigurationError: As for `message_status`.
    """
    parts = tuple(map(_encoded, id))
    if not parts or not all(parts):
        raise ConfigurationError("message ID: give at least one part, none of them empty")
    text = "/".join(map(shown, parts))
    if isinstance(handler, str):
        return IdPlace(handler, text, possible_digests(*parts, scope=b"" if topic is None else topic_scope(topic)))
    name, identity = getattr(handler, "name", None), getattr(handler, "message_id", None)
    label = handler.__name__ if isinstance(handler, type) else type(handler).__name__
    if not isinstance(name, str) or not isinstance(identity, Identity):
        raise ConfigurationError(
            f"{label} does not set name and message_id in the class; give an instance, or the name as text"
        )
    try:
        return IdPlace(name, text, identity.digests_of(*parts, scope=_scope(handler, label, topic)))
    except ValueError as error:
        raise ConfigurationError(f"{label}: {error}") from None


def _scope(handler: Any, label: str, topic: str | None) -> bytes:
    topics = (handler.topic,) if hasattr(handler, "topic") else tuple(getattr(handler, "topics", ()))
    if topic is not None and topic not in topics:
        raise ConfigurationError(f"{label} does not read the topic {shown_word(topic)}; it reads {', '.join(topics)}")
    if handler.scope != "topic":
        return b""
    if topic is None and len(topics) != 1:
        raise ConfigurationError(f'{label} has scope="topic": name the topic, one of {", ".join(topics)}')
    return topic_scope(topics[0] if topic is None else topic)


def _encoded(part: Part) -> bytes:
    return encode_field(part) or b""
