"""Reads what a group has committed, as a consumer does that never joins it.

Not by the administrator's client: librdkafka 2.16 reads through a null pointer there when the broker answers that it is
not the group's coordinator, as it does while that is being found, and the whole process ends (librdkafka#5315).
"""

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

_NOT_YET = (KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS)


class CommittedOffsets:
    """What one group has committed of one topic; a context manager."""

    def __init__(self, config: Mapping[str, Any], group: str, topic: str) -> None:
        self._consumer = Consumer({"log_level": 0, "reconnect.backoff.max.ms": 200, **config, "group.id": group})
        self._topic = topic

    def read(self, partitions: Iterable[int] | None = None) -> dict[int, int]:
        """The offsets by partition, negative where there is none; of all partitions unless some are named.

        Raises:
            KafkaException: The group's coordinator did not answer.
        """
        if partitions is None:
            partitions = self._consumer.list_topics(self._topic, timeout=60).topics[self._topic].partitions
        wanted = [TopicPartition(self._topic, number) for number in partitions]
        end = time.monotonic() + 60
        while True:
            try:
                return {found.partition: found.offset for found in self._consumer.committed(wanted, timeout=60)}
            except KafkaException as error:
                # A broker that has just started is no coordinator yet.
                if error.args[0].code() not in _NOT_YET or time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()
