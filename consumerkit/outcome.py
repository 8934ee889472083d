"""The outcomes of messages: their states and the reasons of dead letters."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Outcome(IntEnum):
    """The outcome that the ledger keeps for a message ID; the numbers are stored."""

    PROCESSED = 1
    PARKED = 2
    DEAD = 3


class MessageState(StrEnum):
    """The state of a message ID, from `message_status`.

    PROCESSED: its changes are committed. PARKED: it waits for its next attempt, or behind another message of its key.
    DEAD: it is among the dead letters. IN_FLIGHT: a transaction that is not committed holds it. UNKNOWN: none of these.
    """

    PROCESSED = "processed"
    PARKED = "parked"
    DEAD = "dead"
    IN_FLIGHT = "in_flight"
    UNKNOWN = "unknown"


class Reason(StrEnum):
    """Why a message is in the dead letters."""

    UNDECODABLE = "undecodable"
    UNIDENTIFIED = "unidentified"
    REJECTED = "rejected"
    EXHAUSTED = "exhausted"
    CONFLICT = "conflict"
    STALE = "stale"
    OVERSIZED = "oversized"
    KILLED_PROCESS = "killed_process"
    FAILED_DUPLICATE = "failed_duplicate"
    EXPIRED = "expired"
    UNDO_FAILED = "undo_failed"

    @property
    def has_ledger_row(self) -> bool:
        """Whether a dead letter of this reason holds a claim on its message ID.

        Dead letters of the other reasons cannot: they have no known ID, the ID belongs to another
        message, or it cannot be proven new.
        """
        return self in (Reason.REJECTED, Reason.EXHAUSTED, Reason.KILLED_PROCESS, Reason.EXPIRED)

    @property
    def holds_key(self) -> bool:
        """Whether a dead letter of this reason may make later messages of its key wait: its own effect is missing.

        A conflict does not: its message ID was processed.
        """
        return self.has_ledger_row or self in (Reason.UNDECODABLE, Reason.UNIDENTIFIED, Reason.OVERSIZED)
