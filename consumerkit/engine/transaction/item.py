"""A message within one transaction."""

from __future__ import annotations

import time
from enum import Enum

from consumerkit.engine.transaction.delivery import Decided, GiveUp, Park
from consumerkit.outcome import Outcome, Reason
from consumerkit.steps import MessageSteps
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.parking.parked import Kind, ParkedMessage


class Disposition(Enum):
    """What a transaction does with a message; known after the claims."""

    RUN = "run"
    PARK = "park"
    DEAD_LETTER = "dead letter"
    DUPLICATE = "duplicate"
    REPEAT = "repeat"
    """A duplicate of a processed message; it goes to the handler's `on_duplicate`."""
    DUPLICATE_OF_DEAD = "duplicate of dead"
    RELEASE = "release"
    """A parked row that only held its key and no longer should."""
    LEAVE = "leave"
    """A parked message whose row has changed since it was read, because it was tried in between."""


class Item:
    """A delivery within one transaction, with that transaction's findings and decisions.

    An item belongs to one transaction only.

    Attributes:
        delivery: The delivery; its values are repeated here.
        claimed: Whether this item inserted the claim on its ID.
        dead: The dead letter, if the message becomes one instead of running.
        parked: Its row in the parking lot, if this is a retry.
        gone: Whether that row is no longer there: it was handed out twice, or a person removed it.
        repeats: Whether it is a duplicate of a processed message, for the handler's `on_duplicate`.
        number: Its number in the parking lot, once it is there.
        parking: The row to park, if the message is parked or stays parked instead of running.
        hold: The row that makes later messages of its key wait, if its dead letter holds the key.
        revived: Whether it runs although its ID was dead.
        steps: The steps of a message that may run; None if its handler has none.
        token: Whether a token of the brake is reserved for its dead letter.
        disposition: See `Disposition`.
        age: For a duplicate, how many seconds ago the first message of its ID got its outcome.
        taken_at: When its partition was taken over, by the monotonic clock, if an earlier owner may have read it.
        outdated: Whether it is older than the ledger remembers, by its event or by its place in the log.
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
        "gone",
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
        self.gone = False
        self.repeats = delivery.repeats
        self.aged = self.outdated = delivery.aged
        self.untimed = delivery.untimed
        intent = decided.intent
        self.dead: DeadMessage | None = intent.letter if isinstance(intent, GiveUp) else None
        self.token = isinstance(intent, GiveUp) and intent.token
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
        """Whether it may be the first message of its ID, read again.

        True if that message had its outcome before this owner began, and the log already reached this place.
        """
        return self.taken_at is not None and self.age > time.monotonic() - self.taken_at

    @property
    def is_stale(self) -> bool:
        """Whether it cannot be proven new and becomes a dead letter without a claim."""
        return self.dead is not None and self.dead.reason is Reason.STALE

    @property
    def only_postponed(self) -> bool:
        """Whether it only stays parked for longer; the write that records this locks its row."""
        if self.parked is None or self.parked.kind is not Kind.MESSAGE:
            return False
        return self.wanted is Disposition.PARK and (self.parked.digest is not None or self.digest is None)

    @property
    def wanted(self) -> Disposition:
        """The disposition that it gets if its ID is free."""
        return Disposition.DEAD_LETTER if self.dead else Disposition.PARK if self.parking else Disposition.RUN

    @property
    def outcome(self) -> Outcome:
        """The outcome that the ledger records for its ID."""
        if self.dead is not None and self.dead.reason is not Reason.CONFLICT:
            return Outcome.DEAD
        return Outcome.PROCESSED if self.parking is None else Outcome.PARKED

    @property
    def stays_parked(self) -> bool:
        """Whether it has a row in the parking lot once its transaction is durable."""
        return self.disposition in (Disposition.PARK, Disposition.LEAVE) or self.hold is not None
