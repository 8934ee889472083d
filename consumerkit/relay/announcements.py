"""Announces once what the relay holds back and why, and when that is over."""

from __future__ import annotations

from typing import Final

from consumerkit import events
from consumerkit.dead_letters.error_text import of_database
from consumerkit.events import Announcer
from consumerkit.relay.holds import LONGEST_WAIT, Hold
from consumerkit.relay.refusals import cause_of, way_out
from consumerkit.storage.outbox import Pending
from consumerkit.transports.base import SendFailure

_FIRST_WAIT: Final = 1.0


class RelayAnnouncements:
    """Announces for a relay.

    Args:
        announce: Announces events.
        principal: The Kafka user to name where a right is missing; None if it is unknown.
    """

    def __init__(self, announce: Announcer, principal: str | None) -> None:
        self._announce = announce
        self._principal = principal
        self._failures = 0
        self._since = 0.0
        self._where: list[str] = []

    def trouble(self, error: Exception, now: float) -> float:
        """Announce that the database is in trouble; return the seconds to wait."""
        return self._again("database", of_database(error), now)

    def turn_lost(self, error: Exception, now: float) -> float:
        """Announce that the relay's turn was lost; return the seconds to wait."""
        return self._again("database", str(error), now)

    def unconnected(self, error: Exception, now: float) -> float:
        """Announce that the producer was refused, which may need a person; return the seconds to wait."""
        return self._again("broker", f"the outbox cannot be sent: {error}", now)

    def _again(self, where: str, error: str, now: float) -> float:
        if not self._failures:
            self._since = now
        wait = min(LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(self._failures, 7))
        self._failures += 1
        if where not in self._where:
            self._where.append(where)
        self._announce(events.Trouble(where=where, error=error, wait=wait, work="outbox"))
        return wait

    def works(self, now: float) -> None:
        """Announce that the trouble is over, if there was any."""
        if self._failures:
            self._failures = 0
            seconds = now - self._since
            for where in self._where:
                self._announce(events.TroubleOver(where=where, seconds=seconds, work="outbox"))
            self._where.clear()

    def published(self, count: int) -> None:
        """Announce that messages were sent."""
        self._announce(events.OutboxPublished(count=count))

    def by_reference(self, pending: Pending) -> None:
        """Announce a dead letter that was sent without its value."""
        told = events.DeadLetterByReference(topic=pending.message.topic, sequence=pending.sequence)
        self._announce(told, pending.message)

    def held(self, pending: Pending, failure: SendFailure, hold: Hold) -> None:
        """Announce why a topic, a key or a message waits."""
        topic = pending.message.topic
        self._announce(
            events.OutboxHeldBack(
                topic=topic,
                sequence=hold.sequence,
                error=f"{failure.code}: {failure.message}",
                wait=hold.wait,
                way_out=way_out(cause_of(failure), topic, pending.sequence, principal=self._principal),
            ),
            pending.message,
        )

    def resumed(self, topic: str, hold: Hold | None, now: float) -> None:
        """Announce the end of a hold, if there was one."""
        if hold is not None:
            self._announce(events.OutboxResumed(topic=topic, sequence=hold.sequence, seconds=now - hold.since))
