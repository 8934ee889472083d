"""Finds the place of an imported dead letter in a topic that its handler reads.

A record may name a place in the log. That place is the handler's own if the record has the topic's present ID, and the
place is below the log's end and below the handler's mark, so that its message has been dealt with. The letter then
has the same origin as the handler's own dead letter of that message.

All other letters have an origin of their own, with a text instead of the topic's ID. This is `origin:TOPIC[PARTITION]`,
the same at each import. If the record has an ID of another topic, it is that ID. If the record names no place, it is
`dlq:ID[PARTITION]` of the dead-letter topic. A letter from a topic that the handler does not read goes to a topic that
the operator names. Kafka's own producers would choose the same partition for its key, so it keeps its order among the
key's messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from consumerkit.dead_letters.formats import LetterRecord, Origin
from consumerkit.message import Message
from consumerkit.transports.base import TopicInfo
from consumerkit.transports.partitioner import partition_of

_NOTHING: Final[Mapping[str, Mapping[int, int]]] = MappingProxyType({})


class Unplaced(ValueError):
    """A letter comes from elsewhere, and no topic was named for such letters."""


Place = tuple[str, int | None, int]
"""Topic ID, partition, offset; for a letter with an origin of its own, the partition may change with the topic."""

Settled = Mapping[str, Mapping[int, int]]
"""The offset below which a place in a topic's partition is the handler's own; a missing partition has none."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A letter's message at its place.

    Attributes:
        message: The message as the handler sees it.
        at_home: Whether it keeps its former place; else its partition may change when the topic grows.
        others: Further places where the handler itself or an earlier import may have entered the same letter.
    """

    message: Message
    at_home: bool
    others: tuple[Place, ...] = ()

    @property
    def place(self) -> Place:
        """Makes it unique among the handler's letters."""
        message = self.message
        return message.topic_id, message.partition if self.at_home else None, message.offset


def placed(
    letter: LetterRecord,
    record: Message,
    topics: Mapping[str, TopicInfo],
    as_topic: str | None,
    settled: Settled = _NOTHING,
) -> Placed:
    """Return a letter's message at its place.

    Args:
        letter: The content of the record.
        record: The record of the dead-letter topic.
        topics: The topics that the handler reads.
        as_topic: The topic that takes the letters from elsewhere.
        settled: Which places in them are the handler's own.

    Raises:
        Unplaced: It comes from elsewhere, and `as_topic` is None.
    """
    origin = letter.origin
    home = None if origin is None else topics.get(origin.topic)
    if home is None and as_topic is None:
        where = "it does not name its origin" if origin is None else f"it stood in {origin.topic!r}"
        raise Unplaced(f"{where}, and the handler reads {', '.join(sorted(topics))}; name one of them with --as-topic")
    target = home or topics[as_topic or ""]
    if origin is None:
        found = _message(letter, target, record.offset, f"dlq:{record.topic_id}[{record.partition}]")
        return Placed(found, at_home=False)
    if home is None or origin.partition >= home.partitions:
        return Placed(_message(letter, target, origin.offset, _of_its_own(origin)), at_home=False)
    return _in_its_topic(letter, origin, home, topics, settled)


def _in_its_topic(
    letter: LetterRecord, origin: Origin, home: TopicInfo, topics: Mapping[str, TopicInfo], settled: Settled
) -> Placed:
    at = (origin.partition, origin.offset)
    others: tuple[Place, ...] = ((home.topic_id, *at), (_of_its_own(origin), None, origin.offset))
    below = settled.get(home.name, {}).get(origin.partition, 0)
    if letter.topic_id == home.topic_id and origin.offset < below:
        return Placed(_message(letter, home, origin.offset, home.topic_id, origin.partition), True, others[1:])
    if letter.topic_id and all(letter.topic_id != topic.topic_id for topic in topics.values()):
        return Placed(_message(letter, home, origin.offset, letter.topic_id, origin.partition), True, others)
    found = _message(letter, home, origin.offset, _of_its_own(origin), origin.partition)
    return Placed(found, at_home=False, others=others[:1])


def _of_its_own(origin: Origin) -> str:
    return f"origin:{origin.topic}[{origin.partition}]"


def _partition(key: bytes | None, offset: int, partitions: int) -> int:
    return offset % partitions if key is None else partition_of(key, partitions)


def _message(
    letter: LetterRecord, target: TopicInfo, offset: int, topic_id: str, partition: int | None = None
) -> Message:
    number = _partition(letter.key, offset, target.partitions) if partition is None else partition
    return Message(target.name, number, offset, letter.key, letter.value, letter.headers, letter.timestamp, topic_id)
