"""Reads the headers of a format strictly: a header that breaks it is a `MalformedRecord`, never guessed."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar

from consumerkit.dead_letters.formats.letter import MalformedRecord, Origin
from consumerkit.message import Headers, Message, is_topic_name, known_time
from consumerkit.observability.printable import is_printable

T = TypeVar("T")
Read = Callable[[bytes], int]
Which = Literal["first", "last"]
MOST_ATTEMPTS: Final = 2**31 - 1
LONGEST: Final = 1_000
"""Characters of a name in a record: a class, a group, a connector."""
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9998, 1, 1, tzinfo=UTC)
"""Between these, a moment has a date in every time zone, in every database and in Python."""
# The broker's ID of a topic, or its name if the broker has no IDs; or a stand-in that an import
# wrote.
_TOPIC_ID: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}|(?:origin|dlq):[a-zA-Z0-9._-]{1,249}\[\d{1,10}\]")


class Fields:
    """The headers of one record, by name.

    A message that died several times, in one topic after another, has a convention's headers
    several times: `which` chooses the first or the last of a name.
    """

    def __init__(self, headers: Headers) -> None:
        self._found: dict[str, list[bytes | None]] = {}
        for name, value in headers:
            self._found.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def get(self, name: str, read: Callable[[bytes], T], *, which: Which = "last", default: T | None = None) -> T:
        """Return a header's value as `read` reads it; `default` if there is no such header.

        Raises:
            Malformed: `read` raised ValueError; or there is neither a value nor a default.
        """
        values = self._found.get(name)
        value = None if values is None else values[0 if which == "first" else -1]
        if value is None:
            if default is not None:
                return default
            raise MalformedRecord(f"header {name!r} is missing" if values is None else f"header {name!r} has no value")
        try:
            return read(value)
        except ValueError as error:
            raise MalformedRecord(f"header {name!r}: {error}") from None

    def words(self, name: str) -> str:
        """Return the last free text of this name, with invalid UTF-8 escaped; empty if there is none."""
        return self.get(name, lambda value: value.decode("utf-8", "backslashreplace"), default="")

    def origin(
        self, topic: str, partition: str, offset: str, *, numbers: tuple[Read, Read], which: Which = "first"
    ) -> Origin | None:
        """Return where the message stood, or None if all three headers are absent.

        Args:
            topic: The name of the header that holds the topic.
            partition: The name of the header that holds the partition.
            offset: The name of the header that holds the offset.
            numbers: The readers of partition and offset.
            which: Which occurrence of each.

        Raises:
            Malformed: Some are absent and others not, or one has an invalid value.
        """
        if not any(name in self for name in (topic, partition, offset)):
            return None
        return Origin(
            self.get(topic, topic_name, which=which),
            self.get(partition, _place(numbers[0], 2**31), which=which),
            self.get(offset, _place(numbers[1], 2**63), which=which),
        )


def text(value: bytes) -> str:
    """Read UTF-8 text that is not empty."""
    try:
        found = value.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if not found:
        raise ValueError("it is empty")
    return found


def label(value: bytes) -> str:
    """Read a name that is printable and not too long."""
    found = text(value)
    if len(found) > LONGEST:
        raise ValueError(f"it has more than {LONGEST} characters")
    if not is_printable(found):
        raise ValueError("it has characters that cannot be printed")
    return found


def topic_id(value: bytes) -> str:
    """Read a topic's ID; empty if its writer knew none."""
    if not value:
        return ""
    found = text(value)
    if not _TOPIC_ID.fullmatch(found):
        raise ValueError("it is not a topic's ID")
    return found


def topic_name(value: bytes) -> str:
    """Read a topic's name."""
    name = text(value)
    if not is_topic_name(name):
        raise ValueError("it is not a topic's name")
    return name


def decimal(value: bytes) -> int:
    """Read a whole number in decimal."""
    if not 0 < len(value) <= 20 or not value.removeprefix(b"-").isdigit():
        raise ValueError("it is not a whole number")
    return int(value)


def int32(value: bytes) -> int:
    """Read four bytes, big-endian."""
    return _big_endian(value, 4)


def int64(value: bytes) -> int:
    """Read eight bytes, big-endian."""
    return _big_endian(value, 8)


def _big_endian(value: bytes, size: int) -> int:
    if len(value) != size:
        raise ValueError(f"it has {len(value)} bytes, not {size}")
    return int.from_bytes(value, "big", signed=True)


def count(read: Read) -> Read:
    """Make a reader of counts, which are not negative; a count too large for the column is cut: it may be forged."""

    def counted(value: bytes) -> int:
        found = read(value)
        if found < 0:
            raise ValueError("it is negative")
        return min(found, MOST_ATTEMPTS)

    return counted


def timestamp(read: Read) -> Read:
    """Make a reader of milliseconds since the epoch, up to the year 9998; -1 means none."""

    def stamped(value: bytes) -> int:
        found = read(value)
        if found != -1 and known_time(found) != found:
            raise ValueError("it is not a time")
        return found

    return stamped


def own_timestamp(message: Message) -> int:
    """Return the record's own timestamp, which is the message's if no header gives another.

    Raises:
        Malformed: It is no valid time.
    """
    if message.timestamp >= 0 and known_time(message.timestamp) < 0:
        raise MalformedRecord("the record's own timestamp is not a time")
    return max(-1, message.timestamp)


def moment(value: bytes) -> datetime:
    """Read a time in ISO 8601 with its zone, from 1970 to 9998; return it in UTC."""
    try:
        found = datetime.fromisoformat(text(value))
    except ValueError:
        raise ValueError("it is not a time in ISO 8601") from None
    if found.tzinfo is None:
        raise ValueError("it has no time zone")
    # Compared before the conversion: at the ends of the calendar a time has no date in another
    # zone.
    if not _EARLIEST <= found < _LATEST:
        raise ValueError("it is not between 1970 and 9998")
    return found.astimezone(UTC)


def _place(read: Read, end: int) -> Read:
    def placed(value: bytes) -> int:
        found = read(value)
        if not 0 <= found < end:
            raise ValueError("it is not a place in a log")
        return found

    return placed
