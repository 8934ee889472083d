"""Messages for a test."""

from __future__ import annotations

from collections.abc import Mapping

from consumerkit.handlers.codecs import Json
from consumerkit.handlers.context import encoded_headers
from consumerkit.storage.outbox import MESSAGE_ID_HEADER
from consumerkit.transports.base import Record


def message(
    value: object,
    *,
    id: str | None = None,
    key: str | bytes | None = None,
    topic: str = "",
    headers: Mapping[str, str | bytes] | None = None,
) -> Record:
    """Return a message for the handler under test; the arguments are those of `context.publish`.

    Args:
        value: The value: bytes as they are, None as a tombstone, anything else as JSON.
        id: The message ID, sent as the header `message-id`. Leave it out where the handler reads
            the ID elsewhere.
        key: The record's key; messages of one key stay in order.
        topic: The topic. It may be left out where the handler reads only one.
        headers: Further headers.

    Raises:
        TypeError: The value cannot be encoded, or a header is neither text nor bytes.

    Example:
        >>> message({"amount": 5}, id="p-1", key="alice", topic="payments")
        Record(topic='payments', key=b'alice', value=b'{"amount":5}', headers=(('message-id', b'p-1'),), partition=None)
    """
    known = () if id is None else ((MESSAGE_ID_HEADER, id.encode()),)
    content = None if value is None else Json().encode(value)
    return Record(topic, key.encode() if isinstance(key, str) else key, content, (*encoded_headers(headers), *known))
