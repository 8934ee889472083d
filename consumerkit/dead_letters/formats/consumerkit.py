"""Our own convention: UTF-8 headers `consumerkit-dlq-*`, which `consumerkit.engine.transaction.failures` writes.

The headers of one death stand together behind the message's own, the reason first. Where a handler reads another's
dead-letter topic, the message's own are the other's death: only those from the last reason on are this one's.
"""

from __future__ import annotations

from typing import Final

from consumerkit.dead_letters.formats.header_fields import (
    Fields,
    count,
    decimal,
    label,
    moment,
    text,
    timestamp,
    topic_id,
)
from consumerkit.dead_letters.formats.letter import Letter, Malformed, Origin
from consumerkit.message import Headers, Message
from consumerkit.outcome import Reason

NAME: Final = "consumerkit"
PREFIX: Final = "consumerkit-dlq-"


def recognises(message: Message) -> bool:
    """Whether a record has headers of this convention."""
    return any(name.startswith(PREFIX) for name, _ in message.headers)


def read(message: Message) -> Letter:
    """Return what a record tells.

    Raises:
        Malformed: It does not keep to the convention.
    """
    headers, death = _parted(message.headers)
    fields = Fields(death)
    return Letter(
        convention=NAME,
        key=message.key,
        value=message.value,
        headers=headers,
        origin=_origin(fields),
        topic_id=fields.get(f"{PREFIX}topic-id", topic_id, default=""),
        timestamp=fields.get(f"{PREFIX}timestamp", timestamp(decimal)),
        reason=fields.get(f"{PREFIX}reason", _reason),
        error_type=fields.get(f"{PREFIX}error-type", label),
        error=fields.words(f"{PREFIX}error-message"),
        stack=fields.words(f"{PREFIX}stack"),
        place=fields.words(f"{PREFIX}place") or None,
        attempts=fields.get(f"{PREFIX}attempts", count(decimal)),
        first_failed_at=fields.get(f"{PREFIX}first-failed-at", moment),
        consumer=fields.get(f"{PREFIX}consumer", label),
        whole=_is_whole(message, headers, fields),
    )


def _origin(fields: Fields) -> Origin:
    origin = fields.origin(f"{PREFIX}topic", f"{PREFIX}partition", f"{PREFIX}offset", numbers=(decimal, decimal))
    if origin is None:
        raise Malformed(f"header '{PREFIX}topic' is missing")
    return origin


def _reason(value: bytes) -> Reason:
    try:
        return Reason(text(value))
    except ValueError:
        raise ValueError(f"it is none of {', '.join(Reason)}") from None


def _is_whole(message: Message, headers: Headers, death: Fields) -> bool:
    """Tell a record without its message: it says so, or it has nothing of its own while the message had a size."""
    size = death.get(f"{PREFIX}size", count(decimal), default=0)
    bare = message.key is None and message.value is None and not headers
    return f"{PREFIX}by-reference" not in death and not (size and bare)


def _parted(headers: Headers) -> tuple[Headers, Headers]:
    """Return the message's own headers, and those of its last death."""
    reasons = [at for at, (name, _) in enumerate(headers) if name == f"{PREFIX}reason"]
    if not reasons:
        raise Malformed(f"header '{PREFIX}reason' is missing")
    own = [header for at, header in enumerate(headers) if at < reasons[-1] or not header[0].startswith(PREFIX)]
    return tuple(own), headers[reasons[-1] :]
