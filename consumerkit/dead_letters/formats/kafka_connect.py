"""The convention of Kafka Connect, as its `DeadLetterQueueReporter` writes it for sink connectors.

Its headers are named `__connect.errors.*`; without
`errors.deadletterqueue.context.headers.enable=true` there are none. All values are UTF-8 text, with
numbers in decimal. A connector that reads another's dead letters adds them once more (older workers
keep the existing ones): the first gives the message's first place, the last its last failure. An
older worker writes an unknown origin as an empty topic at -1; newer ones leave it out. The record
has the message's own timestamp.
"""

from __future__ import annotations

from typing import Final

from consumerkit.dead_letters.formats.header_fields import Fields, decimal, label, own_timestamp
from consumerkit.dead_letters.formats.java_stack import place_in, says_undecodable
from consumerkit.dead_letters.formats.letter import LetterRecord, Origin
from consumerkit.message import Message
from consumerkit.outcome import Reason

NAME: Final = "connect"
PREFIX: Final = "__connect.errors."
_TOPIC: Final = f"{PREFIX}topic"
_PARTITION: Final = f"{PREFIX}partition"
_OFFSET: Final = f"{PREFIX}offset"
_NOWHERE: Final = {_TOPIC: b"", _PARTITION: b"-1", _OFFSET: b"-1"}
_CONVERTERS: Final = frozenset({"KEY_CONVERTER", "VALUE_CONVERTER", "HEADER_CONVERTER"})


def recognises(message: Message) -> bool:
    """Whether a record has headers of this convention."""
    return any(name.startswith(PREFIX) for name, _ in message.headers)


def read(message: Message) -> LetterRecord:
    """Return the content of a record.

    Raises:
        Malformed: It breaks the convention.
    """
    fields = Fields(message.headers)
    stage = fields.get(f"{PREFIX}stage", label)
    kind = fields.get(f"{PREFIX}exception.class.name", label, default=f"Connect.{stage}")
    undecodable = stage in _CONVERTERS or says_undecodable(kind)
    return LetterRecord(
        convention=NAME,
        key=message.key,
        value=message.value,
        headers=tuple((name, value) for name, value in message.headers if not name.startswith(PREFIX)),
        origin=_origin(message, fields),
        timestamp=own_timestamp(message),
        reason=Reason.UNDECODABLE if undecodable else Reason.EXHAUSTED,
        error_type=kind,
        error=fields.words(f"{PREFIX}exception.message"),
        stack=fields.words(f"{PREFIX}exception.stacktrace"),
        place=place_in(fields.words(f"{PREFIX}exception.stacktrace")),
        consumer=fields.get(f"{PREFIX}connector.name", label),
    )


def _origin(message: Message, fields: Fields) -> Origin | None:
    if all((name, value) in message.headers for name, value in _NOWHERE.items()):
        return None
    return fields.origin(_TOPIC, _PARTITION, _OFFSET, numbers=(decimal, decimal))
