"""Makes the rows of dead, parked and published messages, and describes errors in words."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2b
from typing import Final

from consumerkit.dead_letters.error_text import (
    CAUSES,
    STACK_BYTES,
    TEXT_CHARACTERS,
    cut,
    described,
    error_text,
    error_type,
    in_full,
    recorded_text,
    stack_of,
)
from consumerkit.engine.transaction.delivery import Delivery
from consumerkit.engine.transaction.error_place import place_of
from consumerkit.engine.transaction.item import Item
from consumerkit.handlers.context import Publication
from consumerkit.message import Headers
from consumerkit.observability.propagation import carried_on
from consumerkit.outcome import Reason
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.outbox import MESSAGE_ID_HEADER, OutboxMessage
from consumerkit.storage.parking.parked import Kind, ParkedMessage

__all__ = [
    "CAUSES",
    "STACK_BYTES",
    "STALE",
    "TEXT_CHARACTERS",
    "behind",
    "conflict",
    "described",
    "error_text",
    "error_type",
    "from_error",
    "held",
    "in_full",
    "is_held",
    "now",
    "parked",
    "poison",
    "published",
    "recorded_text",
    "source_of",
    "stack_of",
    "stale",
    "summary",
    "told",
    "undeclared",
]

STALE: Final = "Stale"
# Their texts are consumerkit's own and show nothing of a message's content.
_OUR_WORDS: Final = (Reason.CONFLICT, Reason.KILLED_PROCESS, Reason.OVERSIZED, Reason.STALE, Reason.UNIDENTIFIED)


def published(
    publication: Publication, consumer: str, digest: bytes | None, ordinal: int, trace: Headers = ()
) -> OutboxMessage:
    """Return a publication's row, with a message ID that is the same whenever the message is handled again.

    `trace` holds headers that carry the message's trace on, unless the handler gave them itself.
    """
    name = publication.id
    if name is None:
        seed = b"\x00".join((consumer.encode(), digest or b"", str(ordinal).encode()))
        name = blake2b(seed, digest_size=16).hexdigest()
    own = carried_on(publication.headers, trace) if trace else publication.headers
    headers = (*own, (MESSAGE_ID_HEADER, name.encode("utf-8", "surrogatepass")))
    return OutboxMessage(publication.topic, publication.key, publication.value, headers)


def source_of(item: Item) -> bytes | None:
    """Return the source of the IDs of an item's publications: its own ID, with its place if it is a duplicate.

    So a duplicate's publications have other IDs than the first message's, and the same ones at each delivery.
    """
    if not item.repeats:
        return item.digest
    message = item.message
    place = f"{message.topic_id}/{message.partition}/{message.offset}"
    return b"\x00".join((item.digest or b"", b"duplicate", place.encode()))


def conflict(delivery: Delivery) -> DeadMessage:
    """Return the dead letter of a message whose ID belongs to another payload."""
    return DeadMessage(
        message=delivery.message,
        digest=delivery.digest,
        message_id=delivery.message_id,
        reason=Reason.CONFLICT,
        error_type="Conflict",
        error="another payload was processed under this message ID; declare `fingerprint` if resends may differ",
        fingerprint=delivery.fingerprint,
        fingerprint_version=delivery.fingerprint_version,
    )


def from_error(
    delivery: Delivery, reason: Reason, error: BaseException, *, attempts: int, first_failed_at: datetime | None
) -> DeadMessage:
    """Return the dead letter of a message that its handler refused."""
    return DeadMessage(
        message=delivery.message,
        digest=delivery.digest,
        message_id=delivery.message_id,
        reason=reason,
        error_type=error_type(error),
        error=recorded_text(error),
        stack=stack_of(error),
        attempts=attempts,
        first_failed_at=first_failed_at,
        fingerprint=delivery.fingerprint,
        fingerprint_version=delivery.fingerprint_version,
        place=place_of(error),
        summary=described(error),
        in_full=in_full(error),
    )


def poison(delivery: Delivery, crashes: int) -> DeadMessage:
    """Return the dead letter of a message that ran alone each time the process died."""
    return DeadMessage(
        message=delivery.message,
        digest=delivery.digest,
        message_id=delivery.message_id,
        reason=Reason.KILLED_PROCESS,
        error_type="KilledProcess",
        error=f"the process died {crashes} times while it handled only this message",
        attempts=delivery.attempt - 1,
        fingerprint=delivery.fingerprint,
        fingerprint_version=delivery.fingerprint_version,
    )


def stale(delivery: Delivery) -> DeadMessage:
    """Return the dead letter of a message that may have been processed: its ID is older than the ledger keeps."""
    return DeadMessage(
        message=delivery.message,
        digest=delivery.digest,
        message_id=delivery.message_id,
        reason=Reason.STALE,
        error_type=STALE,
        error="the ledger has forgotten the messages of its time: it may have been processed before",
        fingerprint=delivery.fingerprint,
        fingerprint_version=delivery.fingerprint_version,
    )


def is_held(item: Item) -> bool:
    """Tell whether an item is stale and is parked because the brake allows no dead letter."""
    return item.parking is not None and item.parking.error_type == STALE


def undeclared(parked: ParkedMessage) -> DeadMessage:
    """Return the dead letter of a parked message whose event type the handler no longer declares."""
    return DeadMessage(
        message=parked.message,
        digest=parked.digest,
        message_id=parked.message_id,
        reason=Reason.UNDECODABLE,
        error_type="Undecodable",
        error="its event type was declared when it was parked, and no longer is",
        summary="its event type was declared when it was parked, and no longer is",
        attempts=parked.attempts,
        first_failed_at=parked.first_failed_at,
        fingerprint=parked.fingerprint,
        fingerprint_version=parked.fingerprint_version,
    )


def parked(
    delivery: Delivery, error: BaseException, *, attempts: int, wait: float, first_failed_at: datetime | None
) -> ParkedMessage:
    """Return the parking row of a message that its handler failed on or deferred."""
    return ParkedMessage(
        id=delivery.retry_of.id if delivery.retry_of is not None else 0,
        message=delivery.message,
        digest=delivery.digest,
        message_id=delivery.message_id,
        fingerprint=delivery.fingerprint,
        fingerprint_version=delivery.fingerprint_version,
        attempts=attempts,
        wait=wait,
        first_failed_at=first_failed_at,
        error_type=error_type(error),
        error=recorded_text(error),
        stack=stack_of(error),
        kind=_kind(delivery),
    )


def held(delivery: Delivery, dead: DeadMessage, wait: float) -> ParkedMessage:
    """Return the parking row of a dead message for which the brake now allows no dead letter."""
    return ParkedMessage(
        id=delivery.retry_of.id if delivery.retry_of is not None else 0,
        message=delivery.message,
        digest=delivery.digest,
        message_id=delivery.message_id or dead.message_id or "",
        fingerprint=delivery.fingerprint,
        fingerprint_version=delivery.fingerprint_version,
        attempts=delivery.retry_of.attempts if delivery.retry_of is not None else 0,
        wait=wait,
        error_type=dead.error_type,
        error=dead.error,
        kind=_kind(delivery),
    )


def _kind(delivery: Delivery) -> Kind:
    return Kind.REPEAT if delivery.repeats else Kind.MESSAGE


def behind(delivery: Delivery) -> ParkedMessage:
    """Return the parking row of a message that must wait behind another one of its key."""
    return ParkedMessage(
        message=delivery.message,
        digest=delivery.digest,
        message_id=delivery.message_id,
        fingerprint=delivery.fingerprint,
        fingerprint_version=delivery.fingerprint_version,
    )


def told(dead: DeadMessage) -> str:
    """Return a dead letter's error for logs: its class, or the text of a `Reject`, which is for people."""
    return cut(f"Reject: {dead.error}", 300) if dead.reason is Reason.REJECTED else dead.error_type


def summary(dead: DeadMessage) -> str:
    """Return the part of a dead letter's error that a log may show: what failed and where, but no payload."""
    if dead.reason in _OUR_WORDS:
        return cut(dead.error, 300)
    return dead.summary or told(dead)


def now() -> datetime:
    """Return this moment, with its zone."""
    return datetime.now(UTC)
