"""How long payloads are kept: of messages that wait for something, and of decided ones."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta

from consumerkit.policies.duration import DAY, seconds_of

Span = float | timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadRetention:
    """How long consumerkit's tables keep payloads; each value is seconds, a timedelta, or None for ever.

    A decided message no longer needs its payload. The other three kinds are unfinished work: they
    are kept for ever unless you say otherwise, and each message that then ends is reported and
    recorded.

    Args:
        decided: A dead letter, after it was resolved or discarded. The facts stay.
        dead: An undecided dead letter, after it died. It stays dead without its payload, so it
            cannot be redriven any more, only resolved or discarded; a key that it holds stays held.
        parked: A parked message, after it was first parked. It becomes a dead letter with the
            reason `expired`, with its payload, and can be redriven.
        outbox: A message to send, after it was written. It is given up unsent, and recorded without
            its payload.

    Raises:
        ConfigurationError: A value is no duration above 0.

    Example:
        >>> PayloadRetention(parked=timedelta(days=30)).seconds("parked")
        2592000.0
    """

    decided: Span = 30 * DAY
    dead: Span = None
    parked: Span = None
    outbox: Span = None

    def __post_init__(self) -> None:
        for field in fields(self):
            self.seconds(field.name)

    def seconds(self, name: str) -> float | None:
        """Return one of the durations in seconds."""
        return seconds_of(name, getattr(self, name), of="PayloadRetention")


def payload_retention_of(given: Span | PayloadRetention) -> PayloadRetention:
    """Return the meaning of `Worker(payload_retention=...)`: a plain duration is that of decided dead letters.

    Raises:
        ConfigurationError: It is no duration above 0.
    """
    if isinstance(given, PayloadRetention):
        return given
    return PayloadRetention(decided=seconds_of("payload_retention", given))
