"""A dead letter as read from a record of a dead-letter topic, in any convention."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from consumerkit.message import Headers
from consumerkit.outcome import Reason


class Origin(NamedTuple):
    """Where a message stood when it failed."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterRecord:
    """The content of a dead-letter topic's record: the message as it was, and why it is dead.

    Attributes:
        convention: The convention's name.
        key, value: As in the record.
        headers: The record's, without the convention's own.
        origin: Where the message stood; None if the convention says that it is unknown.
        topic_id: The ID of the origin's topic; empty if the convention does not have it.
        timestamp: The message's, in milliseconds since the epoch; -1 if unknown.
        reason: Why it is dead, in our words.
        error_type: The error's class, by its name in its own language.
        error: The error's text, uncut.
        stack: The error's stack, uncut.
        place: Where the error was raised, if the stack shows it; part of what defines a group of
            errors.
        attempts: How often it failed; 0 if the convention does not say.
        first_failed_at: When it first failed, if known.
        consumer: Which consumer failed: our handler's name, a consumer group, a connector; empty if
            unknown.
        whole: False if the record lacks its message because of the message's size.
    """

    convention: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    origin: Origin | None
    topic_id: str = ""
    timestamp: int
    reason: Reason
    error_type: str
    error: str = ""
    stack: str = ""
    place: str | None = None
    attempts: int = 0
    first_failed_at: datetime | None = None
    consumer: str = ""
    whole: bool = True


class MalformedRecord(ValueError):
    """A record breaks its convention; the text names the header and never its value."""
