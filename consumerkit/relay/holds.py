"""What is held back, and until when: a topic, a queue of it, or one message. Time is passed in."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, NamedTuple

from consumerkit.relay.refusals import Cause
from consumerkit.storage.outbox import Pending, Queue

LONGEST_WAIT: Final = 60.0
_JITTER: Final = 0.25
_FORGOTTEN_AFTER: Final = 2 * LONGEST_WAIT


class HoldPlace(NamedTuple):
    """A topic; a queue of it; or, where a message without a key is at fault, that message alone."""

    topic: str
    queue: Queue | None = None
    sequence: int | None = None


@dataclass(slots=True)
class Hold:
    """Why a place waits, since when, and until when it does so at least; `sequence` is the message at fault."""

    cause: Cause
    since: float
    sequence: int | None = None
    failures: int = 0
    wait: float = 0.0
    until: float = 0.0

    def again(self, cause: Cause, now: float) -> None:
        """Count one more failure: the wait doubles, and jitter only adds to it, never past the longest.

        What fails while the place waits was sent together with what made it wait: that is one failure, or a short
        outage under load would be followed by the longest wait.
        """
        self.cause = cause
        if self.until > now:
            return
        self.failures += 1
        longest = LONGEST_WAIT / (1 + _JITTER)
        # Many processes whose topic went at one moment are not to come back at one moment.
        self.wait = min(longest, 2.0 ** min(self.failures - 1, 10)) * random.uniform(1, 1 + _JITTER)
        self.until = now + self.wait


class Holds:
    """All that is held back."""

    def __init__(self) -> None:
        self._holds: dict[HoldPlace, Hold] = {}

    def hold(self, pending: Pending, cause: Cause, now: float) -> tuple[Hold, bool]:
        """Hold back a message's topic, or its key where only the message is at fault.

        Returns:
            The hold, and whether this is news: a new one, or a new cause.
        """
        place, sequence = HoldPlace(pending.message.topic), None
        if cause.of_record:
            place, sequence = self._at_fault(pending), pending.sequence
        hold = self._holds.get(place)
        news = hold is None or hold.cause is not cause
        if hold is None:
            hold = self._holds[place] = Hold(cause, now, sequence)
        hold.again(cause, now)
        return hold, news

    @staticmethod
    def _at_fault(pending: Pending) -> HoldPlace:
        # A message without a key has no order: it holds back itself alone.
        topic, queue = pending.message.topic, pending.queue
        return HoldPlace(topic, queue) if queue.key else HoldPlace(topic, queue, pending.sequence)

    def held(self, pending: Pending, now: float) -> bool:
        """Tell whether a message must wait."""
        places = (HoldPlace(pending.message.topic), self._at_fault(pending))
        return any(hold.until > now for place in places if (hold := self._holds.get(place)) is not None)

    def ill(self, topic: str) -> bool:
        """Tell whether a topic failed the last time: then one message goes ahead, to see."""
        return HoldPlace(topic) in self._holds

    def release_topic(self, topic: str) -> Hold | None:
        """Forget a topic's failures, since the broker takes its messages; return what held it back."""
        return self._holds.pop(HoldPlace(topic), None)

    def release(self, pending: Pending) -> Hold | None:
        """Forget the failures of a message's key, since it was taken; return what held it back."""
        return self._holds.pop(self._at_fault(pending), None) if self._holds else None

    def outlived(self, pending: Pending) -> Hold | None:
        """Forget what another message of the key did, which is gone if this one's turn has come; return it."""
        place = self._at_fault(pending)
        hold = self._holds.get(place)
        return self._holds.pop(place) if hold is not None and hold.sequence != pending.sequence else None

    def topics(self, now: float) -> list[str]:
        """Return the topics that wait as a whole."""
        return sorted(place.topic for place in self._waiting(now) if place.queue is None)

    def queues(self, now: float) -> set[Queue]:
        """Return the queues that wait, and those without a key where one message does."""
        return {place.queue for place in self._waiting(now) if place.queue is not None}

    def _waiting(self, now: float) -> list[HoldPlace]:
        return [place for place, hold in self._holds.items() if hold.until > now]

    def forget(self, now: float) -> list[tuple[str, Hold]]:
        """Forget what was not tried again although its time had come: it was discarded, or another process sent it."""
        old = [place for place, hold in self._holds.items() if hold.until + _FORGOTTEN_AFTER < now]
        return [(place.topic, self._holds.pop(place)) for place in old]
