"""A delivered message, and the intent with it. Both are fixed before BEGIN and never change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from consumerkit.message import Message
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.parking.parked import ParkedMessage


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that was decoded and identified; made again for each attempt, since handlers may change events.

    Attributes:
        message: The record.
        event: What it was decoded to.
        digest: The ledger's key; None where no ID was found.
        message_id: The ID as text.
        fingerprint: What tells a resend from a conflict.
        fallback: Whether the ID came from a fallback source.
        attempt: The number of this attempt.
        fingerprint_version: In which `fingerprint` was made; see `Fingerprint`.
        retry_of: The row of the parking lot that it comes from, where it is tried again.
        repeats: Whether it is known to be a duplicate of a processed message, so that `on_duplicate` runs.
        aged: Whether it is older than what the ledger remembers, by its event.
        untimed: Whether it has no readable time, where one is declared.
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
class DeadLetter:
    """Give the message up, with this letter; `token` tells whether a token of the brake is reserved for it."""

    letter: DeadMessage
    token: bool = False


Intent = Handle | Park | DeadLetter


class Decided(NamedTuple):
    """A delivery, and the intent with it if its ID is free.

    Attributes:
        delivery: The delivery.
        intent: What is to become of it.
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
        """The dead letter, where the message is to be given up."""
        return self.intent.letter if isinstance(self.intent, DeadLetter) else None
