"""A message whose steps are run, and what that came to."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

from consumerkit.message import TopicPartition
from consumerkit.storage.parking.parked import ParkedMessage

if TYPE_CHECKING:
    from consumerkit.steps.message_steps import MessageSteps

Place = tuple[str, str, int, int]
"""Where a message stands: topic, topic ID, partition, offset."""


class Subject(NamedTuple):
    """A message that may run, as its steps see it.

    Attributes:
        event: What `prepare` is given.
        digest: The message's key in the ledger.
        message_id: The ID as text.
        place: Where it stands.
        order: What it has its order in: messages with the same one follow one another. None where it has none.
        waits: Its row in the parking lot, where its ID was claimed when it was parked; else None.
        redriven: Whether a person has had it run again: who has looked what became of a step in doubt.
    """

    event: Any
    digest: bytes
    message_id: str
    place: Place
    order: Hashable = None
    waits: ParkedMessage | None = None
    redriven: bool = False

    @property
    def partition(self) -> TopicPartition:
        """The partition in which it stands."""
        return TopicPartition(self.place[0], self.place[2])


class Prepared(NamedTuple):
    """What became of a subject: the results of its steps, and the error that ended `prepare`, where there was one."""

    calls: MessageSteps
    error: BaseException | None = None
