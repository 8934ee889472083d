"""Where messages stood in the log: identifies letters and parked messages, and tells two messages of one place apart.

An origin is topic ID, partition and offset. Two messages may name the same origin: the producers of
a dead-letter topic may write anything. The second message is stored beside the first, under a topic
ID with a digest of the message added.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final, NamedTuple

from consumerkit.errors import PayloadSealed
from consumerkit.message import Message, TopicPartition, known_time
from consumerkit.storage import headers as header_text
from consumerkit.storage.payload import Sealer, payload

Origin = tuple[str, int, int]
UNREADABLE: Final = b"unreadable"
"""Stands for the content of a row whose sealer is not available: it equals no other content."""
MARK: Final = "#"
"""Precedes the digest that tells two messages of one origin apart; no topic ID or topic name contains it."""


def origin(message: Message) -> Origin:
    """Return what identifies a dead letter: topic ID, partition, offset."""
    return (message.topic_id, message.partition, message.offset)


def moved(message: Message, topic_id: str) -> Message:
    """Return the same message under another topic ID.

    Example:
        >>> moved(Message("orders", 0, 7, b"k"), "other").topic_id
        'other'
    """
    return Message(
        message.topic,
        message.partition,
        message.offset,
        message.key,
        message.value,
        message.headers,
        message.timestamp,
        topic_id,
        message.epoch,
    )


def home(topic_id: str) -> str:
    """Return the topic ID of an origin, without the digest that tells two messages apart.

    Example:
        >>> home("pRWzGhbSTDG_pQ0Jc#07c2")
        'pRWzGhbSTDG_pQ0Jc'
    """
    return topic_id.partition(MARK)[0]


class MessageIdentity(NamedTuple):
    """What tells a message from another one at the same place.

    Attributes:
        digest: The ledger's key; None where it is not known.
        fingerprint: As in the ledger; None where it is not known.
        content: A digest of key, value and headers; None if the payload was not kept or cannot be
            read.
        facts: Size and timestamp, which stay when the payload is gone; -1 for a value that is no
            valid time, as in a header.
        version: The fingerprint's version; fingerprints of two versions cannot be compared.
        earlier: The facts as computed by older releases, which counted only the characters of a
            header.
    """

    digest: bytes | None
    fingerprint: bytes | None
    content: bytes | None
    facts: tuple[int, int]
    version: int | None = None
    earlier: tuple[int, int] | None = None

    def agrees(self, other: MessageIdentity) -> bool:
        """Return whether both are the same message: by ID and fingerprint if both know them, else by content.

        Example:
            >>> known = MessageIdentity(b"id", b"one", b"content", (7, -1))
            >>> known.agrees(known._replace(fingerprint=b"two"))
            False
            >>> known.agrees(known._replace(digest=None, fingerprint=None))
            True
        """
        if self.is_known and other.is_known:
            if self.digest != other.digest:
                return False
            if self.version == other.version:
                return self.fingerprint == other.fingerprint
        if UNREADABLE in (self.content, other.content):
            return False
        if self.content is None or other.content is None:
            return self.facts in (other.facts, other.earlier) or self.earlier == other.facts
        return self.content == other.content

    def holds_the_same(self, other: MessageIdentity) -> bool:
        """Return whether both are known to have the same payload, whatever their IDs are."""
        return self.content == other.content and self.content not in (None, UNREADABLE)

    @property
    def is_known(self) -> bool:
        """Whether ID and fingerprint are known."""
        return bool(self.digest and self.fingerprint)

    @property
    def mark(self) -> str:
        """Return a suffix for the topic ID that is the same for the same message each time."""
        parts = (self.digest or b"", self.fingerprint or b"", self.content or b"")
        return MARK + blake2b(b"".join(map(_framed, parts)), digest_size=8).hexdigest()


def identity(
    message: Message, digest: bytes | None, fingerprint: bytes | None, version: int | None, *, whole: bool = True
) -> MessageIdentity:
    """Return the identity of a message; without its content if only its facts are kept."""
    content = _content(message.key, message.value, header_text.as_text(message.headers)) if whole else None
    time = known_time(message.timestamp)
    earlier = len(message.key or b"") + len(message.value or b"")
    earlier += sum(len(name) + len(value or b"") for name, value in message.headers)
    return MessageIdentity(digest or None, fingerprint or None, content, (message.size, time), version, (earlier, time))


def identity_of(row: Any, sealer: Sealer | None, *, size: int, whole: bool = True) -> MessageIdentity:
    """Return the identity of a stored message; `whole` says whether the row has its payload."""
    digest, fingerprint = (None if value is None else bytes(value) for value in (row.digest, row.fingerprint))
    content: bytes | None = None
    if whole:
        try:
            value, headers = payload(sealer, row)
            content = _content(None if row.key is None else bytes(row.key), value, header_text.as_text(headers))
        except PayloadSealed:
            content = UNREADABLE
    return MessageIdentity(
        digest or None, fingerprint or None, content, (size, known_time(row.timestamp)), row.fingerprint_version
    )


class Clash(NamedTuple):
    """Two messages at one place: the second has its own row beside the first one's.

    Attributes:
        partition: The partition of both.
        offset: The offset where both stood, or where their records say that they stood.
        message_id: The second message's ID, as text.
        table: The table of the rows, "dead_letters" or "parked_messages".
        row: The number of the first message's row.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    table: str
    row: int


def clash(message: Message, message_id: str | None, table: str, row: int) -> Clash:
    """Return the clash of a message with a row that stands at its place."""
    return Clash(TopicPartition(message.topic, message.partition), message.offset, message_id or "", table, row)


def _content(key: bytes | None, value: bytes | None, headers: str) -> bytes:
    parts = map(_framed, (key, value, headers.encode("utf-8", "surrogatepass")))
    return blake2b(b"".join(parts), digest_size=16).digest()


def _framed(part: bytes | None) -> bytes:
    return b"-" if part is None else b"%d:%b" % (len(part), part)
