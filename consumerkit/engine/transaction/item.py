"""A message on its way through one transaction."""

from __future__ import annotations

import time
from enum import Enum

from consumerkit.engine.transaction.delivery import DeadLetter, Decided, Park
from consumerkit.outcome import Outcome, Reason
from consumerkit.steps import MessageSteps
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.parking.parked import Kind, ParkedMessage


class Disposition(Enum):
    """What a transaction does about a message, known once the claims have been answered."""

    RUN = "run"
    PARK = "park"
    DEAD_LETTER = "dead letter"
    DUPLICATE = "duplicate"
    REPEAT = "repeat"
    """A duplicate of a processed message for the handler's `on_duplicate`."""
    DUPLICATE_OF_DEAD = "duplicate of dead"
    RELEASE = "release"
    """A parked row that only held its key, and is to do so no longer."""
    LEAVE = "leave"
    """A parked message that is not as it was read any more: it was tried in between."""


class Item:
    """A delivery within one transaction, and what that finds and decides; it is used in no other transaction.

    Attributes:
        delivery: What was delivered; its values are repeated here.
        claimed: Whether this item inserted the claim on its ID.
        dead: Set where the message is not to be run, but to be a dead letter.
        parked: The row in the parking lot that this item comes from, where it is tried again.
        repeats: Whether it is a duplicate of a processed message for the handler's `on_duplicate`.
        number: Its number in the parking lot, once it is there.
        parking: Set where the message is not to be run now, but to be parked, or to be parked for longer.
        hold: The row that keeps the later messages of its key waiting, where its dead letter holds the key.
        revived: Whether its ID was dead, and it runs all the same.
        steps: The steps of a message that may run; None where its handler has none.
        token: Whether a token of the brake is reserved for its dead letter.
        verdict: See `Disposition`.
        age: How many seconds before it the first message of its ID got its outcome, where it is a duplicate.
        taken_at: When its partition was taken over, by the monotonic clock, where an owner before may have read it.
        outdated: Whether it is older than what the ledger remembers, by its event or by its place in the log.
    """

    __slots__ = (
        "age",
        "aged",
        "attempt",
        "claimed",
        "dead",
        "delivery",
        "digest",
        "disposition",
        "event",
        "fallback",
        "fingerprint",
        "fingerprint_version",
        "hold",
        "message",
        "message_id",
        "number",
        "outdated",
        "parked",
        "parking",
        "repeats",
        "revived",
        "steps",
        "taken_at",
        "token",
        "untimed",
    )

    def __init__(self, decided: Decided) -> None:
        self.delivery = delivery = decided.delivery
        self.message = delivery.message
        self.event = delivery.event
        self.digest = delivery.digest
        self.message_id = delivery.message_id
        self.fingerprint = delivery.fingerprint
        self.fingerprint_version = delivery.fingerprint_version
        self.fallback = delivery.fallback
        self.attempt = delivery.attempt
        self.parked = delivery.retry_of
        self.repeats = delivery.repeats
        self.aged = self.outdated = delivery.aged
        self.untimed = delivery.untimed
        intent = decided.intent
        self.dead: DeadMessage | None = intent.letter if isinstance(intent, DeadLetter) else None
        self.token = isinstance(intent, DeadLetter) and intent.token
        self.parking: ParkedMessage | None = intent.row if isinstance(intent, Park) else None
        self.hold: ParkedMessage | None = None
        self.revived = False
        self.number = 0
        self.steps: MessageSteps | None = None
        self.disposition = Disposition.RUN
        self.claimed = False
        self.age = 0.0
        self.taken_at: float | None = None

    @property
    def is_redelivered(self) -> bool:
        """Whether the first message of its ID had its outcome before this owner began, and the log reached here then.

        It may be that message, read again.
        """
        return self.taken_at is not None and self.age > time.monotonic() - self.taken_at

    @property
    def is_stale(self) -> bool:
        """Whether it cannot be proven new, so that it becomes a dead letter without a claim."""
        return self.dead is not None and self.dead.reason is Reason.STALE

    @property
    def only_postponed(self) -> bool:
        """Whether nothing is to become of it but to be parked for longer: its row is locked by writing that down."""
        if self.parked is None or self.parked.kind is not Kind.MESSAGE:
            return False
        return self.wanted is Disposition.PARK and (self.parked.digest is not None or self.digest is None)

    @property
    def wanted(self) -> Disposition:
        """What is to become of it, if its ID is free."""
        return Disposition.DEAD_LETTER if self.dead else Disposition.PARK if self.parking else Disposition.RUN

    @property
    def outcome(self) -> Outcome:
        """What the ledger is to hold for its ID."""
        if self.dead is not None and self.dead.reason is not Reason.CONFLICT:
            return Outcome.DEAD
        return Outcome.PROCESSED if self.parking is None else Outcome.PARKED

    @property
    def stays_parked(self) -> bool:
        """Whether a row of it is in the parking lot when its transaction is durable."""
        return self.disposition in (Disposition.PARK, Disposition.LEAVE) or self.hold is not None
