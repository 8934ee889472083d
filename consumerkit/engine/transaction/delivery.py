"""A delivered message and the intent for it; both are fixed before BEGIN and never change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from consumerkit.message import Message
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.parking.parked import ParkedMessage


@dataclass(frozen=True, slots=True)
class Delivery:
    """A decoded and identified message; made for each attempt, since handlers may change events.

    Attributes:
        message: The record.
        event: The decoded event.
        digest: The ledger's key; None if no ID was found.
        message_id: The ID as text.
        fingerprint: Distinguishes a resend from a conflict.
        fallback: Whether the ID came from a fallback source.
        attempt: The number of this attempt.
        fingerprint_version: The version of `fingerprint`; see `Fingerprint`.
        retry_of: Its row in the parking lot, if this is a retry.
        repeats: Whether it is known to be a duplicate of a processed message, so that `on_duplicate` runs.
        aged: Whether its event is older than the ledger remembers.
        untimed: Whether it lacks a readable time although one is declared.
    """

    message: Message
    event: Any = None
    digest: bytes | None = None
    message_id: str = ""
    fingerprint: bytes = b""
    fallback: bool = False
    attempt: int = 1
    fingerprint_version: int | None = None
    retry_of: ParkedMessage | None = None
    repeats: bool = False
    aged: bool = False
    untimed: bool = False


@dataclass(frozen=True, slots=True)
class Handle:
    """Run the handler."""


@dataclass(frozen=True, slots=True)
class Park:
    """Park the message, or leave it parked for longer, as this row."""

    row: ParkedMessage


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Give the message up with this letter; `token` is set if a token of the brake is reserved for it."""

    letter: DeadMessage
    token: bool = False


Intent = Handle | Park | GiveUp


class Decided(NamedTuple):
    """A delivery, and the intent for it if its ID is free.

    Attributes:
        delivery: The delivery.
        intent: Whether to run, park or give up the message.
        reduced: How often its row was reduced because the database refused it.
    """

    delivery: Delivery
    intent: Intent = Handle()
    reduced: int = 0

    @property
    def message(self) -> Message:
        """The record."""
        return self.delivery.message

    @property
    def letter(self) -> DeadMessage | None:
        """The dead letter, if the message is to be given up."""
        return self.intent.letter if isinstance(self.intent, GiveUp) else None
