"""Classifies why the broker or the client refused a message, and names the remedy."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from consumerkit.transports.base import SendFailure


class Cause(StrEnum):
    """The cause of a refusal, independent of the client library."""

    MISSING = "missing"
    FORBIDDEN = "forbidden"
    TOO_LARGE = "too large"
    UNFIT = "unfit"
    UNREACHABLE = "unreachable"

    @property
    def of_record(self) -> bool:
        """Whether one message is at fault, rather than its topic."""
        return self in (Cause.TOO_LARGE, Cause.UNFIT)


# librdkafka's names and aiokafka's.
_CODES: Final = {
    "UNKNOWN_TOPIC_OR_PART": Cause.MISSING,
    "UNKNOWN_TOPIC_OR_PARTITION": Cause.MISSING,
    "UNKNOWN_TOPIC": Cause.MISSING,
    "UNKNOWN_PARTITION": Cause.MISSING,
    "UNKNOWN_TOPIC_ID": Cause.MISSING,
    "TOPIC_EXCEPTION": Cause.MISSING,
    "INVALID_TOPIC": Cause.MISSING,
    "TOPIC_AUTHORIZATION_FAILED": Cause.FORBIDDEN,
    "CLUSTER_AUTHORIZATION_FAILED": Cause.FORBIDDEN,
    "MSG_SIZE_TOO_LARGE": Cause.TOO_LARGE,
    "MESSAGE_SIZE_TOO_LARGE": Cause.TOO_LARGE,
    "MESSAGE_TOO_LARGE": Cause.TOO_LARGE,
    "RECORD_LIST_TOO_LARGE": Cause.TOO_LARGE,
    "INVALID_RECORD": Cause.UNFIT,
}


def cause_of(failure: SendFailure) -> Cause:
    """Return the cause of a refusal.

    Example:
        >>> cause_of(SendFailure("MSG_SIZE_TOO_LARGE", "Broker: Message size too large", permanent=True))
        <Cause.TOO_LARGE: 'too large'>
    """
    known = _CODES.get(failure.code.lstrip("_"))
    if known is not None:
        return known
    # A permanent refusal that does not name the topic concerns the record: it cannot be encoded, or breaks a policy.
    return Cause.UNFIT if failure.permanent else Cause.UNREACHABLE


def way_out(cause: Cause, topic: str, sequence: int, *, principal: str | None = None) -> str:
    """Return the remedy for a person, in one sentence.

    Args:
        cause: The cause of the refusal.
        topic: The message's topic.
        sequence: The message's place in the outbox.
        principal: The worker's Kafka user, if it is known.
    """
    match cause:
        case Cause.MISSING:
            return (
                f"create topic {topic!r}: `consumerkit topics create` makes dead-letter topics, with --partitions N "
                "what a handler's publishes names, and Kafka's own tools any other"
            )
        case Cause.FORBIDDEN:
            user = f"principal {principal}" if principal else "the worker's principal"
            return (
                f"allow {user} the operation WRITE on topic {topic!r} (`kafka-acls.sh --add --allow-principal "
                f"{principal or 'User:NAME'} --operation Write --topic {topic}`)"
            )
        case Cause.TOO_LARGE:
            return f"raise `max.message.bytes` of topic {topic!r}, or give message {sequence} up: {_by_hand(sequence)}"
        case Cause.UNFIT:
            return f"no such message can be sent to topic {topic!r}; give message {sequence} up: {_by_hand(sequence)}"
        case Cause.UNREACHABLE:
            return (
                "check that the brokers can be reached, that the topic's partitions have leaders and enough in-sync "
                "replicas for `min.insync.replicas`, and that no quota is used up"
            )


def _by_hand(sequence: int) -> str:
    return f"`consumerkit outbox discard {sequence}`"
