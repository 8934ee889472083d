"""Message IDs: where an ID is read, and how it becomes the ledger's key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.fingerprint import DIGEST_BYTES, WHOLE_VALUE, Fingerprint, event_fields, is_name
from consumerkit.handlers.value_bytes import NoStableBytes, encode_field, read_path
from consumerkit.message import Message

__all__ = [
    "DIGEST_BYTES",
    "WHOLE_VALUE",
    "Fingerprint",
    "Identity",
    "MessageId",
    "coordinates",
    "encode_field",
    "event_field",
    "event_fields",
    "header",
    "possible_digests",
    "read_path",
    "record_timestamp",
    "shown",
    "topic_scope",
]

MAX_KEY_SIZE = blake2b.MAX_KEY_SIZE
SHOWN_CHARACTERS = 200

# blake2b keeps hashes of different "persons" apart. So an ID of one part, an ID of several parts
# and a position in the log never collide, whatever bytes they hold.
_SINGLE = b"id"
_COMPOSITE = b"composite"
_COORDINATES = b"coordinates"
_TIMESTAMP = b"timestamp"


class MessageId(NamedTuple):
    """The ID of a message."""

    digest: bytes
    parts: tuple[bytes, ...]
    fallback: bool

    def __str__(self) -> str:
        parts = self.parts
        return shown(parts[0]) if len(parts) == 1 else "/".join(map(shown, parts))


def shown(raw: bytes) -> str:
    r"""Return raw ID bytes as text that is safe to store and print: escaped, and cut where it is long.

    Example:
        >>> print(shown(b"pay-1"), shown(b"a\x00\xff"))
        pay-1 a\x00\xff
    """
    # A character has at most four bytes; one character beyond the limit tells whether to cut.
    text = raw[: (SHOWN_CHARACTERS + 1) * 4].decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


Part = Callable[[Message, Any], bytes | None]


@dataclass(frozen=True, slots=True)
class _Source:
    parts: tuple[Part, ...]
    person: bytes
    description: str
    fields: tuple[str, ...] = ()

    @property
    def needs_event(self) -> bool:
        """Whether the source reads the decoded event."""
        return bool(self.fields)

    @property
    def names_a_type(self) -> bool:
        """Whether the source can name an event type: it has one part, which is not a place in the log."""
        return self.person == _SINGLE

    def read(self, message: Message, event: object) -> tuple[bytes, ...] | None:
        if len(self.parts) == 1:
            only = self.parts[0](message, event)
            return (only,) if only else None
        found = []
        for part in self.parts:
            value = part(message, event)
            if not value:
                return None
            found.append(value)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Identity:
    """Where to read a message's ID; made by `header`, `event_field` or `coordinates`, joined with `|`.

    Example:
        >>> header("message-id") | event_field("payment_id")
        header('message-id') | event_field('payment_id')
    """

    sources: tuple[_Source, ...]

    def __or__(self, other: Identity) -> Identity:
        return Identity(self.sources + other.sources)

    def __repr__(self) -> str:
        return " | ".join(source.description for source in self.sources)

    @property
    def is_only_a_time(self) -> bool:
        """Whether a source reads a time, which is not an ID of a message."""
        return any(source.person == _TIMESTAMP for source in self.sources)

    def find(self, message: Message, event: object, *, scope: bytes = b"") -> MessageId | None:
        """Return the ID from the first source that has one, or None.

        Args:
            message: The record.
            event: The event that the record was decoded to.
            scope: Part of the digest: the same ID in another scope is another ID.
        """
        for source in self.sources:
            parts = source.read(message, event)
            if parts is not None:
                return MessageId(_digest(parts, source.person, scope), parts, source is not self.sources[0])
        return None

    def digests_of(self, *parts: str | bytes, scope: bytes = b"") -> tuple[bytes, ...]:
        """Return the possible ledger keys of an ID given by hand: one per kind of source with as many parts.

        Raises:
            ValueError: No source has as many parts.
        """
        persons = [source.person for source in self.sources if len(source.parts) == len(parts)]
        if not persons:
            wanted = " or ".join(str(count) for count in sorted({len(source.parts) for source in self.sources}))
            raise ValueError(f"a message ID of {self!r} has {wanted} part(s), and {len(parts)} are given")
        return _digests(parts, persons, scope)


def possible_digests(*parts: str | bytes, scope: bytes = b"") -> tuple[bytes, ...]:
    """Return the possible ledger keys of an ID, where only the name of its handler is known."""
    if len(parts) > 1:
        return _digests(parts, [_COMPOSITE], scope)
    looks_like_a_place = re.fullmatch(rb".+/\d+/\d+", _raw(parts[0]), re.DOTALL) is not None
    return _digests(parts, [_SINGLE, _COORDINATES] if looks_like_a_place else [_SINGLE], scope)


def topic_scope(topic: str) -> bytes:
    """Return the scope that separates a topic's IDs from other topics' IDs; a digest, since a hash key is short."""
    return blake2b(topic.encode(), digest_size=32).digest()


def _digests(parts: tuple[str | bytes, ...], persons: Iterable[bytes], scope: bytes) -> tuple[bytes, ...]:
    raw = tuple(map(_raw, parts))
    return tuple(_digest(raw, person, scope) for person in dict.fromkeys(persons))


def _raw(part: str | bytes) -> bytes:
    return part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part


def _digest(parts: tuple[bytes, ...], person: bytes, scope: bytes) -> bytes:
    # The length before each part separates ("a", "bc") from ("ab", "c"). A key of blake2b has at
    # most 64 bytes.
    joined = parts[0] if len(parts) == 1 else b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    key = scope if len(scope) <= MAX_KEY_SIZE else blake2b(scope).digest()
    return blake2b(joined, digest_size=DIGEST_BYTES, person=person, key=key).digest()


def _source(kind: str, names: tuple[str, ...], make: Callable[[str], Part], *, needs_event: bool) -> Identity:
    description = f"{kind}({', '.join(map(repr, names))})"
    if not names or not all(map(is_name, names)):
        raise ConfigurationError(f"{description}: give at least one name, none of them empty")
    person = _SINGLE if len(names) == 1 else _COMPOSITE
    fields = names if needs_event else ()
    return Identity((_Source(tuple(make(name) for name in names), person, description, fields),))


def header(*names: str) -> Identity:
    """Read the ID from one header, or from several that identify the message together.

    Where a header occurs twice, the last one counts, as in Kafka's `lastHeader`.

    Example:
        >>> header("ce_source", "ce_id")
        header('ce_source', 'ce_id')
    """

    def part(name: str) -> Part:
        return lambda message, _event: message.header(name)

    return _source("header", names, part, needs_event=False)


def event_field(*names: str) -> Identity:
    """Read the ID from one field of the decoded event, or from several; a dot leads into a nested field.

    Example:
        >>> event_field("order.id", "version")
        event_field('order.id', 'version')
    """

    def part(name: str) -> Part:
        path = tuple(name.split("."))

        def read(_message: Message, event: object) -> bytes | None:
            try:
                return encode_field(read_path(event, path))
            except NoStableBytes as error:
                raise NoStableBytes(f"{name!r} {error}") from None

        return read

    return _source("event_field", names, part, needs_event=True)


def coordinates() -> Identity:
    """Use the message's place in the log as its ID: topic ID, partition, offset.

    This detects a redelivery, but not a producer that sends the same message again.
    """

    def part(message: Message, _event: object) -> bytes:
        return f"{message.topic_id}/{message.partition}/{message.offset}".encode()

    return Identity((_Source((part,), _COORDINATES, "coordinates()"),))


def record_timestamp() -> Identity:
    """Use the record's timestamp, which the producer or the broker sets; for `event_time` only."""

    def part(message: Message, _event: object) -> bytes | None:
        return b"%d" % message.timestamp if message.timestamp >= 0 else None

    return Identity((_Source((part,), _TIMESTAMP, "record_timestamp()"),))
