"""Decides once, for all present partitions of a topic, where a handler's first run begins.

A decision at each partition's first takeover would be wrong twice. It would skip the messages that arrive between
a partition's creation and its discovery. And it would run old messages of a partition that no worker had taken
before a crash.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.engine.partitions.start_position import noted_start
from consumerkit.errors import Unavailable
from consumerkit.message import TopicPartition
from consumerkit.storage.first_runs import FirstStart, Source
from consumerkit.transports.base import Consumer, StartFrom, Survey

Record = dict[int, FirstStart]
Topic = tuple[str, str]
"""A topic's name and ID."""


def starts(handler: str, survey: Survey, policy: StartFrom, *, begun: bool, asked_at: int) -> Record:
    """Return where a first run begins in each partition of a topic.

    Args:
        handler: The handler's name.
        survey: The broker's answer about the topic.
        policy: Where to begin in a partition for which Kafka has no committed offset.
        begun: Whether the handler has begun with a topic of this name, even if not with this one. If so, all of its
            messages came after the first run.
        asked_at: When the broker was asked, in milliseconds since 1970.
    """
    ours = {number: noted_start(handler, one.note) for number, one in survey.partitions.items()}
    begun = begun or any(start is not None for start in ours.values())
    otherwise = Source.START if policy == "earliest" or begun else Source.END
    found = {}
    for number, one in survey.partitions.items():
        if (noted := ours[number]) is not None or one.committed is not None:
            found[number] = FirstStart(Source.COMMITTED, one.committed if noted is None else noted, asked_at)
        elif one.span is None:
            found[number] = FirstStart(otherwise, None, asked_at)
        else:
            offset = one.span.start if otherwise is Source.START else one.span.end
            found[number] = FirstStart(otherwise, offset, asked_at)
    return found


class FirstRuns:
    """Knows where the first run begins in each partition of a handler's topics.

    Args:
        consumer: Asked about topics.
        partition_store: The database.
        policy: Where to begin in a partition for which Kafka has no committed offset.
    """

    def __init__(self, consumer: Consumer, partition_store: PartitionStore, policy: StartFrom) -> None:
        self._consumer = consumer
        self._partition_store = partition_store
        self._policy = policy
        self._records: dict[Topic, Record] = {}

    def unknown(self, topics: Iterable[Topic]) -> set[Topic]:
        """Return the topics whose first run is not decided yet."""
        return set(topics) - self._records.keys()

    async def learn(self, topic: Topic) -> None:
        """Find out where the first run on a topic begins, or decide it.

        Raises:
            Unavailable: The broker did not describe the topic, or another database's handler uses the group. The
                other handler's offsets would decide, and the decision is final.
            Exception: The database raised it.
        """
        record = await self._partition_store.first_run(*topic)
        if not record:
            asked_at = _now()
            survey = await self._consumer.survey(topic[0])
            if survey.topic_id != topic[1]:
                raise Unavailable(f"topic {topic[0]!r} was recreated while the worker asked the broker about it")
            for one in survey.partitions.values():
                if (refusal := self._partition_store.origin.refusal(one.note)) is not None:
                    raise Unavailable(f"topic {topic[0]!r}: {refusal}")
            begun = await self._partition_store.had_another(*topic)
            wanted = starts(self._partition_store.handler, survey, self._policy, begun=begun, asked_at=asked_at)
            record = await self._partition_store.decide_first_run(*topic, wanted)
        self._records[topic] = record

    async def find(self, partition: TopicPartition, topic_id: str) -> FirstStart | None:
        """Return where the first run begins in a partition; None if it was added after the decision.

        Raises:
            Unavailable: It begins at the partition's former end, which the broker does not tell.
        """
        record = self._records[partition.topic, topic_id]
        found = record.get(partition.partition)
        if found is None or found.offset is not None or found.source is Source.START:
            return found
        # It had no leader at that time, so nothing could be sent to it: its end is where later records begin.
        offset = await self._consumer.since(partition, found.asked_at)
        record[partition.partition] = found._replace(offset=offset)
        return record[partition.partition]

    def known(self, partition: TopicPartition, topic_id: str) -> FirstStart | None:
        """Return the result of `find` as far as it is known without a question to the broker."""
        return self._records.get((partition.topic, topic_id), {}).get(partition.partition)


def _now() -> int:
    return time.time_ns() // 1_000_000 + 1
