"""The outbox for code outside a handler: a web request's change and its message, in one transaction."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, overload
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from consumerkit.handlers.codecs import Codec, Json
from consumerkit.handlers.context import check_publication, encoded_headers
from consumerkit.observability.propagation import carried_on, current_headers
from consumerkit.storage import outbox as table
from consumerkit.storage.location import located_for
from consumerkit.storage.tables import DEFAULT_TABLES, Tables

_JSON = Json()


@overload
def publish(
    session: AsyncSession,
    topic: str,
    *,
    key: str | bytes | None = None,
    value: object = None,
    id: str | None = None,
    headers: Mapping[str, str | bytes] | None = None,
    codec: Codec = _JSON,
    tables: Tables = DEFAULT_TABLES,
) -> Coroutine[Any, Any, str]: ...


@overload
def publish(
    session: Session,
    topic: str,
    *,
    key: str | bytes | None = None,
    value: object = None,
    id: str | None = None,
    headers: Mapping[str, str | bytes] | None = None,
    codec: Codec = _JSON,
    tables: Tables = DEFAULT_TABLES,
) -> str: ...


def publish(
    session: AsyncSession | Session,
    topic: str,
    *,
    key: str | bytes | None = None,
    value: object = None,
    id: str | None = None,
    headers: Mapping[str, str | bytes] | None = None,
    codec: Codec = _JSON,
    tables: Tables = DEFAULT_TABLES,
) -> Coroutine[Any, Any, str] | str:
    """Write a message to the outbox, in the session's transaction; a running worker's relay sends it to Kafka.

    The message exists if and only if the transaction commits. It is sent at least once, always with the same message
    ID, so that a consumer with a ledger handles it once.

    Args:
        session: Any session; you still commit it. With an `AsyncSession` the call must be awaited.
        topic: The topic that gets the message.
        key: The record's key; text is sent as UTF-8.
        value: The record's value, encoded by `codec`; bytes are sent as they are, None is a tombstone.
        id: The message ID, sent as the header `message-id`; None makes a random one. Derive it from the request if the
            request itself may be repeated.
        headers: Further headers. Headers for the trace of the current OpenTelemetry span, if any, are added.
        codec: Encodes `value`.
        tables: The table definitions, if they are not the default ones. Without a schema, this call first asks where
            the session's search path finds the tables; with a schema it asks nothing.

    Returns:
        The message ID.

    Raises:
        TypeError: The value cannot be encoded, or key, ID or a header is neither text nor bytes.
        ValueError: Kafka does not allow the topic's name.
        ConfigurationError: The search path finds none of our tables, or a schema_translate_map applies to them.

    Example:
        await outbox.publish(session, "orders", key=order.id, value=OrderPlaced(id=order.id))
    """
    check_publication(topic, key, id)
    name = id or uuid4().hex
    message = table.OutboxMessage(
        topic,
        key.encode() if isinstance(key, str) else key,
        None if value is None else codec.encode(value),
        (
            *carried_on(encoded_headers(headers), current_headers()),
            (table.MESSAGE_ID_HEADER, name.encode()),
        ),
    )

    def append(sync: Session) -> str:
        table.append(sync.connection(), located_for(sync, tables), [message])
        return name

    # The session's own coroutine: a handler that forgets to await it then fails.
    return session.run_sync(append) if isinstance(session, AsyncSession) else append(session)
