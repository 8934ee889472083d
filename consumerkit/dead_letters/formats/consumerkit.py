"""Our own format: how a dead letter is written to its topic, shortened and read, all in this one file.

A record has the message's key, value and headers. Headers named `consumerkit-dlq-*` follow in
UTF-8, the reason first. If a handler reads another handler's dead-letter topic, the message's own
headers include those of the other death: only the headers from the last reason on belong to this
death.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

from consumerkit.dead_letters.error_text import STACK_BYTES, cut
from consumerkit.dead_letters.formats.header_fields import (
    LONGEST,
    Fields,
    count,
    decimal,
    label,
    moment,
    text,
    timestamp,
    topic_id,
)
from consumerkit.dead_letters.formats.letter import LetterRecord, MalformedRecord, Origin
from consumerkit.message import Headers, Message, known_time
from consumerkit.observability.printable import printable
from consumerkit.outcome import Reason
from consumerkit.storage.dead_letters.history import within
from consumerkit.storage.dead_letters.letters import DeadMessage, storable
from consumerkit.storage.origins import home
from consumerkit.storage.outbox import MESSAGE_ID_HEADER, OutboxMessage

NAME: Final = "consumerkit"
PREFIX: Final = "consumerkit-dlq-"
"""The prefix of the headers that a dead letter has in its topic, besides the message's own."""


class Header:
    """The names of the headers of a death."""

    REASON: Final = PREFIX + "reason"
    ERROR_TYPE: Final = PREFIX + "error-type"
    ERROR_MESSAGE: Final = PREFIX + "error-message"
    STACK: Final = PREFIX + "stack"
    PLACE: Final = PREFIX + "place"
    TOPIC: Final = PREFIX + "topic"
    TOPIC_ID: Final = PREFIX + "topic-id"
    PARTITION: Final = PREFIX + "partition"
    OFFSET: Final = PREFIX + "offset"
    TIMESTAMP: Final = PREFIX + "timestamp"
    CONSUMER: Final = PREFIX + "consumer"
    MESSAGE_ID: Final = PREFIX + MESSAGE_ID_HEADER
    ATTEMPTS: Final = PREFIX + "attempts"
    FIRST_FAILED_AT: Final = PREFIX + "first-failed-at"
    LAST_FAILED_AT: Final = PREFIX + "last-failed-at"
    SIZE: Final = PREFIX + "size"
    REDRIVES: Final = PREFIX + "redrives"
    HISTORY: Final = PREFIX + "history"
    BY_REFERENCE: Final = PREFIX + "by-reference"
    """Marks a record without the message's value: the table and the log have the message."""


_REFERENCE: Final[Headers] = ((Header.BY_REFERENCE, b"true"),)


def written(dead: DeadMessage, topic: str, consumer: str, now: datetime) -> OutboxMessage:
    """Return the record of a dead letter: key, value and headers unchanged, and our headers added.

    The record of an oversized message has no value and refers to the message's place in the log. The record of a
    message that was redriven and died again also has its earlier errors.

    Args:
        dead: The letter.
        topic: The dead-letter topic.
        consumer: The handler's name.
        now: When the message died.
    """
    message = dead.message
    facts = {
        Header.REASON: dead.reason.value,
        Header.ERROR_TYPE: cut(printable(dead.error_type), LONGEST) or "?",
        Header.ERROR_MESSAGE: dead.error,
        Header.STACK: dead.stack,
        Header.PLACE: dead.place or "",
        Header.TOPIC: message.topic,
        Header.TOPIC_ID: home(message.topic_id),
        Header.PARTITION: str(message.partition),
        Header.OFFSET: str(message.offset),
        Header.TIMESTAMP: str(known_time(message.timestamp)),
        Header.CONSUMER: consumer,
        Header.MESSAGE_ID: dead.message_id or "",
        Header.ATTEMPTS: str(dead.attempts),
        Header.FIRST_FAILED_AT: (dead.first_failed_at or now).isoformat(timespec="milliseconds"),
        Header.LAST_FAILED_AT: now.isoformat(timespec="milliseconds"),
        Header.SIZE: str(message.size),
    }
    if dead.redrives:
        facts |= {Header.REDRIVES: str(dead.redrives), Header.HISTORY: within(dead.history, STACK_BYTES)}
    ours: Headers = tuple((header, storable(fact).encode()) for header, fact in facts.items())
    if not dead.keep_value:
        return OutboxMessage(topic, None, None, ours + _REFERENCE)
    return OutboxMessage(topic, message.key, message.value, (*message.headers, *ours))


def is_dead_letter(message: OutboxMessage) -> bool:
    """Return whether it is a dead letter; a handler's own message may carry the same headers, but ends with its ID."""
    return bool(message.headers) and message.headers[-1][0].startswith(PREFIX)


def shortened(message: OutboxMessage) -> Iterator[OutboxMessage]:
    """Yield the record without its value and stack, then the facts alone for a record that is still too large."""
    dropped = (Header.STACK, Header.BY_REFERENCE)
    headers = tuple(header for header in message.headers if header[0] not in dropped)
    facts = tuple(header for header in headers if header[0].startswith(PREFIX) and header[0] != Header.HISTORY)
    yield OutboxMessage(message.topic, message.key, None, headers + _REFERENCE)
    yield OutboxMessage(message.topic, None, None, facts + _REFERENCE)


class Reference(NamedTuple):
    """What a record refers to: a handler's message, its place in the log, and its ID for people."""

    consumer: str
    topic: str
    partition: int
    offset: int
    message_id: str


def reference_of(message: OutboxMessage) -> Reference | None:
    """Return the message that a dead letter in the outbox copies; None if its headers do not say."""
    facts = dict(message.headers)
    names = (Header.CONSUMER, Header.TOPIC, Header.PARTITION, Header.OFFSET, Header.MESSAGE_ID)
    try:
        consumer, topic, partition, offset, name = (
            (facts[header] or b"").decode("utf-8", "surrogateescape") for header in names
        )
        return Reference(consumer, topic, int(partition), int(offset), name)
    except (KeyError, ValueError):
        return None


def recognises(message: Message) -> bool:
    """Whether a record has headers of this format."""
    return any(name.startswith(PREFIX) for name, _ in message.headers)


def read(message: Message) -> LetterRecord:
    """Return the content of a record.

    Raises:
        Malformed: It breaks the format.
    """
    headers, death = _parted(message.headers)
    fields = Fields(death)
    return LetterRecord(
        convention=NAME,
        key=message.key,
        value=message.value,
        headers=headers,
        origin=_origin(fields),
        topic_id=fields.get(Header.TOPIC_ID, topic_id, default=""),
        timestamp=fields.get(Header.TIMESTAMP, timestamp(decimal)),
        reason=fields.get(Header.REASON, _reason),
        error_type=fields.get(Header.ERROR_TYPE, label),
        error=fields.words(Header.ERROR_MESSAGE),
        stack=fields.words(Header.STACK),
        place=fields.words(Header.PLACE) or None,
        attempts=fields.get(Header.ATTEMPTS, count(decimal)),
        first_failed_at=fields.get(Header.FIRST_FAILED_AT, moment),
        consumer=fields.get(Header.CONSUMER, label),
        whole=_is_whole(message, headers, fields),
    )


def _origin(fields: Fields) -> Origin:
    origin = fields.origin(Header.TOPIC, Header.PARTITION, Header.OFFSET, numbers=(decimal, decimal))
    if origin is None:
        raise MalformedRecord(f"header {Header.TOPIC!r} is missing")
    return origin


def _reason(value: bytes) -> Reason:
    try:
        return Reason(text(value))
    except ValueError:
        raise ValueError(f"it is none of {', '.join(Reason)}") from None


def _is_whole(message: Message, headers: Headers, death: Fields) -> bool:
    """Return whether a record has its message: not if it says so, or if it is empty but the message had a size."""
    size = death.get(Header.SIZE, count(decimal), default=0)
    bare = message.key is None and message.value is None and not headers
    return Header.BY_REFERENCE not in death and not (size and bare)


def _parted(headers: Headers) -> tuple[Headers, Headers]:
    """Return the message's own headers, and the headers of its last death."""
    reasons = [at for at, (name, _) in enumerate(headers) if name == Header.REASON]
    if not reasons:
        raise MalformedRecord(f"header {Header.REASON!r} is missing")
    own = [header for at, header in enumerate(headers) if at < reasons[-1] or not header[0].startswith(PREFIX)]
    return tuple(own), headers[reasons[-1] :]
