"""The convention of Spring for Apache Kafka, as its `DeadLetterPublishingRecoverer` writes it.

Its headers are named `kafka_dlt-*`; in retry topics (`@RetryableTopic`) and their dead-letter topic
they lack `dlt-`, and `retry_topic-*` headers stand beside them. Texts are UTF-8; partitions have
four bytes, offsets and timestamps eight, big-endian. A record that was published several times has
a header several times: the first gives the message's first place, the last its last failure. The
record's value is the original one, even if it could not be deserialized.
`springDeserializerException*` holds a serialized Java object, which is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from consumerkit.dead_letters.formats.header_fields import Fields, count, int32, int64, label, own_timestamp, timestamp
from consumerkit.dead_letters.formats.java_stack import place_in, says_undecodable
from consumerkit.dead_letters.formats.letter import LetterRecord
from consumerkit.message import Headers, Message
from consumerkit.outcome import Reason

NAME: Final = "spring"
_DLT: Final = "kafka_dlt-"
_RETRY: Final = "kafka_"
_ATTEMPTS: Final = "retry_topic-attempts"
_DELIVERY: Final = "kafka_deliveryAttempt"
_WRAPPER: Final = "org.springframework.kafka.listener.ListenerExecutionFailedException"
_OWN: Final = (
    "kafka_dlt-",
    "kafka_original-",
    "kafka_exception-",
    "kafka_key-exception-",
    "kafka_deliveryAttempt",
    "kafka_listenerInfo",
    "retry_topic-",
    "springDeserializerException",
)
_SIGNS: Final = _OWN[:4]


def recognises(message: Message) -> bool:
    """Whether a record has headers of this convention."""
    return any(name.startswith(_SIGNS) for name, _ in message.headers)


def read(message: Message) -> LetterRecord:
    """Return the content of a record.

    Raises:
        Malformed: It breaks the convention.
    """
    fields = Fields(message.headers)
    names = [name for name, _ in message.headers]
    stood = _family(names, "original-topic", "original-partition", "original-offset")
    failed = _family(names[::-1], "exception-fqcn", "key-exception-fqcn")
    # An unreadable key has headers of its own, beside the value's or instead of them.
    part = "exception-" if f"{failed}exception-fqcn" in fields else "key-exception-"
    kind = fields.get(f"{failed}{part}fqcn", label)
    cause = fields.get(f"{failed}exception-cause-fqcn", label, default="")
    key_kind = fields.get(f"{failed}key-exception-fqcn", label, default="")
    origin = fields.origin(
        f"{stood}original-topic",
        f"{stood}original-partition",
        f"{stood}original-offset",
        numbers=(int32, int64),
    )
    name = f"{stood}original-timestamp"
    told = name in fields
    stamp = fields.get(name, timestamp(int64), which="first") if told else own_timestamp(message)
    return LetterRecord(
        convention=NAME,
        key=message.key,
        value=message.value,
        headers=_own_removed(message.headers),
        origin=origin,
        timestamp=stamp,
        reason=Reason.UNDECODABLE if says_undecodable(kind, cause, key_kind) else Reason.EXHAUSTED,
        error_type=cause if kind == _WRAPPER and cause else kind,
        error=fields.words(f"{failed}{part}message"),
        stack=fields.words(f"{failed}{part}stacktrace"),
        place=place_in(fields.words(f"{failed}{part}stacktrace")),
        attempts=_attempts(fields),
        consumer=_group(fields),
    )


def _family(names: Sequence[str], *suffixes: str) -> str:
    """Return the prefix of the first header with such an ending: a record may have been in retry topics too."""
    wanted = {f"{prefix}{suffix}": prefix for prefix in (_DLT, _RETRY) for suffix in suffixes}
    return next((wanted[name] for name in names if name in wanted), _DLT)


def _attempts(fields: Fields) -> int:
    """Return how often the message was tried: a retry topic's header counts the next attempt too."""
    if _ATTEMPTS in fields:
        return max(0, fields.get(_ATTEMPTS, count(_int8_or_int32)) - 1)
    return fields.get(_DELIVERY, count(int32), default=0)


def _int8_or_int32(value: bytes) -> int:
    return value[0] if len(value) == 1 else int32(value)


def _group(fields: Fields) -> str:
    names = (f"{prefix}original-consumer-group" for prefix in (_DLT, _RETRY))
    return next((fields.get(name, label) for name in names if name in fields), "")


def _own_removed(headers: Headers) -> Headers:
    return tuple((name, value) for name, value in headers if not name.startswith(_OWN))
