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
    """What a record of a dead-letter topic tells: the message as it was, and why it is dead.

    Attributes:
        convention: The convention's name.
        key, value: As in the record.
        headers: The record's, without the convention's own.
        origin: Where the message stood; None where the convention says that it is unknown.
        topic_id: The ID that the origin's topic had; empty where the convention does not tell it.
        timestamp: The message's, in milliseconds since the epoch; -1 where unknown.
        reason: Why it is dead, in our words.
        error_type: The error's class, under its own language's name.
        error: The error's text, whole.
        stack: The error's stack, whole.
        place: Where the error was raised, as far as the stack tells it; it tells groups of errors apart.
        attempts: How often it failed; 0 where the convention does not tell it.
        first_failed_at: When it first failed, where known.
        consumer: Who failed: our handler's name, a consumer group, a connector; empty where unknown.
        whole: False where the record stands for a message that it does not hold, because of its size.
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
    """A record does not keep to its convention; the text names the header and never its value."""
