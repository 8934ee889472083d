"""Where a dead letter of a dead-letter topic belongs: at which place of which topic that its handler reads.

A letter that stood in one of the handler's topics goes back there, under the origin that the handler's own dead letter
of it would have. One from elsewhere goes to a topic that the operator names, into the partition that Kafka's own
producers choose for its key, so that it keeps its order among the key's messages. Its origin is then told by a text in
place of a topic's ID, which is the same whenever it is imported: `origin:TOPIC[PARTITION]`, or, where the letter does
not tell its origin, `dlq:ID[PARTITION]` of the dead-letter topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from consumerkit.message import Message
from consumerkit.redrive.conventions import Letter
from consumerkit.transports.base import TopicInfo
from consumerkit.transports.memory_log import murmur2


class Unplaced(ValueError):
    """A letter comes from elsewhere, and no topic was named for those."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A letter's message, at its place.

    Attributes:
        message: The message as the handler will see it.
        at_home: Whether it stands where it stood; else its partition may be another when the topic has grown.
    """

    message: Message
    at_home: bool


def placed(letter: Letter, record: Message, topics: Mapping[str, TopicInfo], as_topic: str | None) -> Placed:
    """Return a letter's message at its place.

    Args:
        letter: What the record tells.
        record: The record of the dead-letter topic.
        topics: The topics that the handler reads.
        as_topic: Which of them takes the letters from elsewhere.

    Raises:
        Unplaced: It comes from elsewhere, and `as_topic` is None.
    """
    origin = letter.origin
    home = None if origin is None else topics.get(origin.topic)
    if origin is not None and home is not None and origin.partition < home.partitions:
        topic_id = letter.topic_id or home.topic_id
        return Placed(_message(letter, home.name, origin.partition, origin.offset, topic_id), at_home=True)
    if home is None and as_topic is None:
        where = "it does not tell its origin" if origin is None else f"it stood in {origin.topic!r}"
        raise Unplaced(f"{where}, and the handler reads {', '.join(sorted(topics))}; name one of them with --as-topic")
    target = home or topics[as_topic or ""]
    if origin is None:
        topic_id, offset = f"dlq:{record.topic_id}[{record.partition}]", record.offset
    else:
        topic_id, offset = f"origin:{origin.topic}[{origin.partition}]", origin.offset
    partition = _partition(letter.key, offset, target.partitions)
    return Placed(_message(letter, target.name, partition, offset, topic_id), at_home=False)


def _partition(key: bytes | None, offset: int, partitions: int) -> int:
    return offset % partitions if key is None else (murmur2(key) & 0x7FFFFFFF) % partitions


def _message(letter: Letter, topic: str, partition: int, offset: int, topic_id: str) -> Message:
    return Message(topic, partition, offset, letter.key, letter.value, letter.headers, letter.timestamp, topic_id)
