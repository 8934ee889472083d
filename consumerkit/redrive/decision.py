"""Decides on a dead letter to redrive, only from the given values and without any request."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final

from consumerkit.handlers.message_id import DIGEST_BYTES
from consumerkit.outcome import Outcome, Reason
from consumerkit.storage.dialects import Kept
from consumerkit.storage.parking.parked import Kind

MAX_REDRIVES: Final = 10


class RedriveResult(StrEnum):
    """The result of an action on a dead letter; in a dry run, the result that it would have."""

    REDRIVEN = "redriven"
    SUCCEEDED = "succeeded since"
    RESOLVED = "resolved"
    DISCARDED = "discarded"
    UNDER_WAY = "under way"
    CONFLICT = "conflict"
    OVERSIZED = "oversized"
    ERASED = "erased"
    TOO_OFTEN = "redriven too often"
    NOT_DEAD = "not dead"
    UNKNOWN = "unknown"

    @property
    def is_done(self) -> bool:
        """Whether the letter is no longer among the dead ones."""
        return self in _DONE

    @property
    def way_out(self) -> str:
        """The remedy for a letter that was left; empty for others."""
        return _WAYS_OUT.get(self, "")


_DONE = frozenset({RedriveResult.REDRIVEN, RedriveResult.SUCCEEDED, RedriveResult.RESOLVED, RedriveResult.DISCARDED})
_WAYS_OUT = {
    RedriveResult.UNDER_WAY: "it, or another message with its ID, is parked: wait for the outcome",
    RedriveResult.CONFLICT: "its message ID belongs to another payload: redrive it with --new-id, or resolve it",
    RedriveResult.OVERSIZED: (
        "its value was not kept: ask its producer to send it again within size_limit, then resolve it"
    ),
    RedriveResult.ERASED: "its payload was erased: resolve or discard it",
    RedriveResult.TOO_OFTEN: "repair the cause, then raise --max-redrives; or resolve or discard it",
    RedriveResult.NOT_DEAD: "it was redriven, resolved or discarded before",
    RedriveResult.UNKNOWN: "no dead letter has this ID",
}


@dataclass(frozen=True, slots=True)
class Identified:
    """The ID under which a letter is redriven.

    Attributes:
        digest: The ledger's key; None if the message has none, or if it is read when the message runs.
        message_id: The ID as text, for people.
        fingerprint: The fingerprint as in the ledger; None if it is unknown.
        version: The fingerprint's version.
    """

    digest: bytes | None
    message_id: str
    fingerprint: bytes | None
    version: int | None = None


def identified(letter: Any, *, new_id: bool) -> Identified:
    """Return the ID under which a letter is redriven: its own, or with `new_id` a derived one for a conflict.

    The derived ID is the same each time: a digest over the old digest and the letter's ID.
    """
    digest = None if letter.digest is None else bytes(letter.digest)
    fingerprint = None if letter.fingerprint is None else bytes(letter.fingerprint)
    message_id = letter.message_id or ""
    if letter.reason == Reason.CONFLICT and new_id and digest is not None:
        seed = digest + int(letter.id).to_bytes(8, "big")
        digest = blake2b(seed, digest_size=DIGEST_BYTES, person=b"redrive").digest()
        message_id = f"{message_id}#redrive-{letter.id}"
    return Identified(digest, message_id, fingerprint, letter.fingerprint_version)


def decide(
    letter: Any,
    identity: Identified,
    kept: Kept | None,
    standing: Kind | None,
    taken: Collection[bytes],
    *,
    new_id: bool,
    max_redrives: int,
) -> RedriveResult:
    """Decide on one letter.

    Args:
        letter: Its row.
        identity: The ID under which to redrive it.
        kept: The ledger's row of that ID.
        standing: The kind of the parked row from its place in the log.
        taken: The IDs that are redriven before it in the same transaction.
        new_id: Whether conflicts get a new ID.
        max_redrives: How often a letter may be redriven.
    """
    outcome = None if kept is None else kept.outcome
    # Fingerprints of different versions cannot be compared here. If such a letter is a conflict, it became one when
    # its message ran.
    known = kept is not None and identity.fingerprint is not None and identity.version == kept.version
    other = known and kept is not None and identity.fingerprint != kept.fingerprint
    waits = outcome is Outcome.PARKED or identity.digest in taken or standing in (Kind.MESSAGE, Kind.RELEASED)
    # In this order: the most informative result comes first.
    answers = (
        (RedriveResult.CONFLICT, other or (letter.reason == Reason.CONFLICT and not new_id)),
        # The first message of a failed duplicate was processed, even if the ledger has forgotten that.
        (RedriveResult.SUCCEEDED, outcome is Outcome.PROCESSED or letter.reason == Reason.FAILED_DUPLICATE),
        (RedriveResult.ERASED, letter.erased_at is not None),
        (RedriveResult.OVERSIZED, letter.reason == Reason.OVERSIZED),
        (RedriveResult.UNDER_WAY, waits),
        (RedriveResult.TOO_OFTEN, letter.redrives >= max_redrives),
    )
    return next((found for found, holds in answers if holds), RedriveResult.REDRIVEN)
