"""A message whose steps run, and the result of its preparation."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

from consumerkit.message import Message, TopicPartition
from consumerkit.storage.parking.parked import ParkedMessage

if TYPE_CHECKING:
    from consumerkit.steps.message_steps import MessageSteps

Place = tuple[str, str, int, int]
"""Where a message stands: topic, topic ID, partition, offset."""


class Subject(NamedTuple):
    """A message that may run, as its steps see it.

    Attributes:
        event: The event that `prepare` gets.
        digest: The message's key in the ledger.
        message_id: The ID as text.
        place: Where it stands in the log.
        order: The scope of its order: messages with an equal scope run one after another. None if it has no order.
        waits: Its row in the parking lot, if its ID was claimed at its parking; else None.
        redriven: Whether a person redrove it; that person has checked what became of a step in doubt.
        message: The record, for events about it.
    """

    event: Any
    digest: bytes
    message_id: str
    place: Place
    order: Hashable = None
    waits: ParkedMessage | None = None
    redriven: bool = False
    message: Message | None = None

    @property
    def partition(self) -> TopicPartition:
        """The partition in which it stands."""
        return TopicPartition(self.place[0], self.place[2])


class Prepared(NamedTuple):
    """The result of preparing a subject: its steps, and the error that ended `prepare` or None."""

    calls: MessageSteps
    error: BaseException | None = None
