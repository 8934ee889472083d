"""For how long payloads are kept that wait for something, and those of what is decided."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta

from consumerkit.policies.duration import DAY, seconds_of

Span = float | timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadRetention:
    """For how long consumerkit's tables keep payloads; each is seconds, a timedelta, or None for ever.

    What is decided needs its payload no more. The other three are of messages that somebody still needs to finish the
    work: they are kept for ever unless you say otherwise, and what then ends is told and recorded.

    Args:
        decided: A dead letter, after it was resolved or discarded. The facts stay.
        dead: An undecided dead letter, after it died. It stays dead without its payload, so it cannot
            be redriven any more, only resolved or discarded; a key that it holds stays held.
        parked: A parked message, after it was parked first. It becomes a dead letter of the reason `expired`, with its
            payload, which can be redriven.
        outbox: A message to send, after it was written. It is given up unsent, and recorded without its payload.

    Raises:
        ConfigurationError: One is no span above 0.

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
        """Return one of the spans in seconds."""
        return seconds_of(name, getattr(self, name), of="PayloadRetention")


def payload_retention_of(given: Span | PayloadRetention) -> PayloadRetention:
    """Return what `Worker(payload_retention=...)` means: a plain span is that of decided dead letters.

    Raises:
        ConfigurationError: It is no span above 0.
    """
    if isinstance(given, PayloadRetention):
        return given
    return PayloadRetention(decided=seconds_of("payload_retention", given))
