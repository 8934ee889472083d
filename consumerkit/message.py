"""A record of the log, with its place."""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")

Headers = tuple[tuple[str, bytes | None], ...]

HEADER_BYTES: Final = 24
"""Bytes of a header besides its name and value: more than it takes in a record (2 or more) or a column (12 to 20)."""


LATEST: Final = 253_339_228_800_000
"""The begin of the year 9998, in milliseconds since the epoch: an earlier time has a date in every time zone."""


def known_time(timestamp: int) -> int:
    """Return a record's timestamp if it is from 1970 to 9997, else -1: a producer may set any number.

    Example:
        >>> known_time(1_700_000_000_000), known_time(2**63 - 1), known_time(-7)
        (1700000000000, -1, -1)
    """
    return timestamp if 0 <= timestamp < LATEST else -1


def bytes_of(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Return a message's size in bytes: key, value and, for each header, name, value and `HEADER_BYTES`.

    A header's name counts in its stored form, where escaped characters take more bytes than in
    UTF-8. A header without name and value counts too: a small record may hold very many.

    Example:
        >>> bytes_of(b"k", b"value", (("id", b"7"), ("", None)))
        57
    """
    size = len(key or b"") + len(value or b"") + HEADER_BYTES * len(headers)
    for name, content in headers:
        size += len(name) if name.isascii() and name.isprintable() else len(json.dumps(name))
        if content is not None:
            size += len(content)
    return size


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


class Message:
    """One record of a Kafka topic, exactly as the broker delivered it.

    Attributes:
        topic: The topic's name.
        partition: The partition's number.
        offset: The record's position in the partition.
        key: The record's key, or None.
        value: The record's value; None is a tombstone.
        headers: All headers in order, duplicates kept.
        timestamp: Milliseconds since the epoch, by the broker's or the producer's clock; -1 when unknown.
        topic_id: The broker's ID of the topic, which changes when a topic is deleted and created again;
            the topic's name where a broker has no such IDs.
        epoch: The assignment under which the record was fetched; see `consumerkit.transports.base`.

    The representation names the position and never the payload.
    """

    __slots__ = ("epoch", "headers", "key", "offset", "partition", "timestamp", "topic", "topic_id", "value")

    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        key: bytes | None = None,
        value: bytes | None = None,
        headers: Headers = (),
        timestamp: int = -1,
        topic_id: str = "",
        epoch: int = 0,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.key = key
        self.value = value
        self.headers = headers
        self.timestamp = timestamp
        self.topic_id = topic_id or topic
        self.epoch = epoch

    def header(self, name: str) -> bytes | None:
        """Return the value of the *last* header called `name`, as Kafka's own `lastHeader` does.

        Example:
            >>> Message("orders", 0, 7, headers=(("id", b"a"), ("id", b"b"))).header("id")
            b'b'
        """
        found = None
        for key, value in self.headers:
            if key == name:
                found = value
        return found

    @property
    def size(self) -> int:
        """Bytes of key, value and headers together, with 24 more for each header; see `bytes_of`."""
        return bytes_of(self.key, self.value, self.headers)

    def __repr__(self) -> str:
        return f"Message({self.topic}[{self.partition}]@{self.offset})"


TOPIC_RULE: Final = "a topic's name has 1 to 249 of the characters a-z A-Z 0-9 . _ -"
"""The rule of `is_topic_name`, in a sentence."""


def is_topic_name(name: object) -> bool:
    """Whether Kafka accepts a value as the name of a topic.

    Example:
        >>> is_topic_name("payments.captured"), is_topic_name("payments captured")
        (True, False)
    """
    return isinstance(name, str) and name not in (".", "..") and bool(_TOPIC_NAME.fullmatch(name))
