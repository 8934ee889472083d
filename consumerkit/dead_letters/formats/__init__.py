"""The formats of dead letters in topics: our own, Spring's and Kafka Connect's, each in a small pure module.

Example:
    >>> from consumerkit.message import Message
    >>> dead = Message("orders-dlt", 0, 7, headers=(("kafka_dlt-exception-fqcn", b"Boom"),))
    >>> [str(one) for one in conventions_of(dead)]
    ['spring']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from consumerkit.dead_letters.formats import consumerkit as ours
from consumerkit.dead_letters.formats import kafka_connect, spring
from consumerkit.dead_letters.formats.letter import LetterRecord, MalformedRecord, Origin
from consumerkit.message import Message

__all__ = ["Convention", "LetterRecord", "MalformedRecord", "Origin", "Unrecognised", "conventions_of", "read"]


class Convention(StrEnum):
    """The format of a dead-letter topic; `AUTO` checks each record."""

    AUTO = "auto"
    CONSUMERKIT = ours.NAME
    SPRING = spring.NAME
    CONNECT = kafka_connect.NAME


class Unrecognised(MalformedRecord):
    """A record has no header of the requested convention, or of any."""


_READERS: Final[Mapping[Convention, tuple[Callable[[Message], bool], Callable[[Message], LetterRecord]]]] = {
    Convention.CONSUMERKIT: (ours.recognises, ours.read),
    Convention.SPRING: (spring.recognises, spring.read),
    Convention.CONNECT: (kafka_connect.recognises, kafka_connect.read),
}


def conventions_of(message: Message) -> tuple[Convention, ...]:
    """Return the conventions whose headers a record has."""
    return tuple(convention for convention, (recognises, _) in _READERS.items() if recognises(message))


def read(message: Message, convention: Convention = Convention.AUTO) -> LetterRecord:
    """Return the content of a dead-letter topic's record.

    Args:
        message: The record.
        convention: The format of the topic.

    Raises:
        Unrecognised: It has no header of the convention.
        Malformed: It breaks the convention; or it has headers of several, and none was named.
    """
    found = conventions_of(message)
    if convention is not Convention.AUTO:
        if convention not in found:
            raise Unrecognised(f"it has no header of the convention {convention.value}")
        return _READERS[convention][1](message)
    if not found:
        raise Unrecognised("it has no header of any known convention")
    if len(found) > 1:
        raise MalformedRecord(
            f"it has headers of several conventions ({', '.join(found)}); name the one with --convention"
        )
    return _READERS[found[0]][1](message)
