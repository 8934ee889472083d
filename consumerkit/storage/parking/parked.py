"""A parked message, and its columns in the database."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import blake2b
from typing import Any

from consumerkit.message import Message
from consumerkit.storage import headers as header_text
from consumerkit.storage.dead_letters.letters import storable
from consumerkit.storage.payload import Sealer, payload


class Kind(StrEnum):
    """The kind of a row in the lot; the names are stored.

    MESSAGE: a message that waits for its next attempt, or behind one that does.
    HELD: stands for a dead message; the later messages of its key wait for a person. Never due.
    RELEASED: was held, and a person has decided: the owner takes it out, and the next message runs.
    REPEAT: a duplicate of a processed message that its handler does not ask for; the first message
    has the ID's claim.
    """

    MESSAGE = "message"
    HELD = "held"
    RELEASED = "released"
    REPEAT = "repeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedMessage:
    """A message in the lot.

    Attributes:
        id: Its number, and its place in the order of its key; 0 before it is in the lot.
        message: The record.
        digest: The ledger's key; None if the message could not be identified.
        message_id: The ID as text.
        fingerprint, fingerprint_version: As in the ledger.
        attempts: Failed invocations in which it ran alone.
        deliveries: Runs that began and left no trace: the process died.
        wait: Seconds until it is due; None if it waits behind another.
        due_at: When it is due, as it was read; None if it was not read.
        first_failed_at: When the first attempt failed; None before.
        failing_for: Seconds since then, on the database's clock.
        error_type, error, stack: The last failure.
        kind: What the row is; see `Kind`.
        dead_letter: The dead letter that was redriven or that holds its key; None for any other
            message.
    """

    id: int = 0
    message: Message
    digest: bytes | None
    message_id: str
    fingerprint: bytes
    attempts: int = 0
    deliveries: int = 0
    wait: float | None = None
    due_at: datetime | None = field(default=None, compare=False)
    first_failed_at: datetime | None = None
    failing_for: float = 0.0
    error_type: str = ""
    error: str = ""
    stack: str = ""
    kind: Kind = Kind.MESSAGE
    dead_letter: int | None = None
    fingerprint_version: int | None = None

    @property
    def due_or_waiting(self) -> bool:
        """Whether it may run as soon as it is the first of its key."""
        return self.wait is None or self.wait <= 0


def key_digest(key: bytes | None) -> bytes | None:
    """Return the digest of a key for an index, which cannot hold keys of any length."""
    return None if key is None else blake2b(key, digest_size=16).digest()


def row_of(parked: ParkedMessage) -> dict[str, Any]:
    """Return the columns of a message, without its due time."""
    message = parked.message
    return {
        "topic": message.topic,
        "topic_id": message.topic_id,
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": message.timestamp,
        "key": message.key,
        "key_digest": key_digest(message.key),
        "value": message.value,
        "headers": header_text.dump(message.headers),
        "digest": parked.digest,
        "message_id": parked.message_id,
        "fingerprint": parked.fingerprint,
        "attempts": parked.attempts,
        "first_failed_at": parked.first_failed_at,
        "error_type": storable(parked.error_type),
        "error": storable(parked.error),
        "stack": storable(parked.stack),
        "kind": parked.kind.value,
        "dead_letter": parked.dead_letter,
        "fingerprint_version": parked.fingerprint_version,
    }


# A message without an ID when it was parked may have got one since.
IDENTITY = frozenset({"digest", "message_id", "fingerprint", "fingerprint_version"})


def parked_in(row: Any, sealer: Sealer | None) -> ParkedMessage:
    """Return the message of a row that was read with `failing_for` and `late`."""
    message = Message(
        row.topic,
        row.partition,
        row.offset,
        plain(row.key),
        *payload(sealer, row),
        row.timestamp,
        row.topic_id,
    )
    return ParkedMessage(
        id=row.id,
        message=message,
        digest=plain(row.digest),
        message_id=row.message_id,
        fingerprint=bytes(row.fingerprint),
        attempts=row.attempts,
        deliveries=row.deliveries,
        wait=None if row.late is None else -float(row.late),
        due_at=row.due_at,
        first_failed_at=row.first_failed_at,
        failing_for=float(row.failing_for or 0.0),
        error_type=row.error_type,
        error=row.error,
        stack=row.stack,
        kind=Kind(row.kind),
        dead_letter=row.dead_letter,
        fingerprint_version=row.fingerprint_version,
    )


def plain(value: bytes | None) -> bytes | None:
    """Return bytes as `bytes`, whatever type the driver returned."""
    return None if value is None else bytes(value)
