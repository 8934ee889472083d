"""Records which topics, queues and messages are held back, and until when; the caller passes the time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, NamedTuple

from consumerkit.relay.refusals import Cause
from consumerkit.storage.outbox import Pending, Queue
from consumerkit.storage.outbox_remaining import Remaining

LONGEST_WAIT: Final = 60.0
_JITTER: Final = 0.25


class HoldPlace(NamedTuple):
    """A topic, a queue of it, or a single message without a key that is at fault."""

    topic: str
    queue: Queue | None = None
    sequence: int | None = None


@dataclass(slots=True)
class Hold:
    """Why a place waits, since when, and at least until when.

    Attributes:
        cause: Why the broker or the client refused.
        since: When the place was held first.
        digest: The topic's digest, as the database stores it.
        sequence: The message at fault; None where the topic is at fault.
        latest: The last of the messages that were refused.
        failures: Tries that failed.
        wait: Seconds between the last failure and the next try.
        until: When the next try is due.
    """

    cause: Cause
    since: float
    digest: bytes
    sequence: int | None = None
    latest: int = 0
    failures: int = 0
    wait: float = 0.0
    until: float = 0.0

    def again(self, cause: Cause, now: float) -> None:
        """Count one more failure: the wait doubles, and jitter adds to it up to the longest wait.

        A failure while the place already waits does not count: it belongs to messages sent together with the first
        one. Otherwise a short outage under load would cause the longest wait.
        """
        self.cause = cause
        if self.until > now:
            return
        self.failures += 1
        longest = LONGEST_WAIT / (1 + _JITTER)
        # Many processes that lose a topic at one moment must not all return at one moment.
        self.wait = min(longest, 2.0 ** min(self.failures - 1, 10)) * random.uniform(1, 1 + _JITTER)
        self.until = now + self.wait


class Holds:
    """All holds of a relay."""

    def __init__(self) -> None:
        self._holds: dict[HoldPlace, Hold] = {}

    def hold(self, pending: Pending, cause: Cause, now: float) -> tuple[Hold, bool]:
        """Hold back a message's topic, or only its key if the message itself is at fault.

        Returns:
            The hold, and whether it or its cause is new.
        """
        place, sequence = HoldPlace(pending.message.topic), None
        if cause.of_record:
            place, sequence = self._at_fault(pending), pending.sequence
        hold = self._holds.get(place)
        news = hold is None or hold.cause is not cause
        if hold is None:
            hold = self._holds[place] = Hold(cause, now, pending.queue.topic, sequence)
        hold.latest = max(hold.latest, pending.sequence)
        hold.again(cause, now)
        return hold, news

    @staticmethod
    def _at_fault(pending: Pending) -> HoldPlace:
        # A message without a key has no order: it holds back only itself.
        topic, queue = pending.message.topic, pending.queue
        return HoldPlace(topic, queue) if queue.key else HoldPlace(topic, queue, pending.sequence)

    def held(self, pending: Pending, now: float) -> bool:
        """Tell whether a message must wait."""
        places = (HoldPlace(pending.message.topic), self._at_fault(pending))
        return any(hold.until > now for place in places if (hold := self._holds.get(place)) is not None)

    def ill(self, topic: str) -> bool:
        """Tell whether a topic failed the last time; the relay then sends one message ahead as a test."""
        return HoldPlace(topic) in self._holds

    def release_topic(self, topic: str) -> Hold | None:
        """Forget a topic's failures, since the broker accepts its messages; return its hold."""
        return self._holds.pop(HoldPlace(topic), None)

    def release(self, pending: Pending) -> Hold | None:
        """Forget the failures of an accepted message's key; return its hold."""
        return self._holds.pop(self._at_fault(pending), None) if self._holds else None

    def outlived(self, pending: Pending) -> Hold | None:
        """Forget and return the hold of an earlier message of the key; that message is gone if this one's turn came."""
        place = self._at_fault(pending)
        hold = self._holds.get(place)
        return self._holds.pop(place) if hold is not None and hold.sequence != pending.sequence else None

    def topics(self, now: float) -> list[str]:
        """Return the topics that wait as a whole."""
        return sorted(place.topic for place in self._waiting(now) if place.queue is None)

    def queues(self, now: float) -> set[Queue]:
        """Return the waiting queues, and the queues without a key that have a waiting message."""
        return {place.queue for place in self._waiting(now) if place.queue is not None}

    def _waiting(self, now: float) -> list[HoldPlace]:
        return [place for place, hold in self._holds.items() if hold.until > now]

    def refused(self) -> tuple[list[int], list[bytes]]:
        """Return the last refused message of each hold, and the digests of the topics that are held as a whole."""
        topics = [hold.digest for hold in self._holds.values() if hold.sequence is None]
        return [hold.latest for hold in self._holds.values()], topics

    def without_reason(self, remaining: Remaining, now: float, *, sends: bool) -> list[tuple[str, Hold]]:
        """Forget and return the holds whose messages are gone: another process sent them, or a person discarded them.

        The process that sends keeps a topic's hold while any message for the topic remains, and tries it at once.

        Args:
            remaining: What the outbox still holds of `refused`.
            now: The time.
            sends: Whether this process has the turn to send.
        """
        over: list[HoldPlace] = []
        for place, hold in self._holds.items():
            if hold.latest in remaining.sequences:
                continue
            if sends and hold.sequence is None and hold.digest in remaining.topics:
                hold.until = min(hold.until, now)
            else:
                over.append(place)
        return [(place.topic, self._holds.pop(place)) for place in over]
