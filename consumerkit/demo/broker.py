"""The demo's clients of the embedded broker (`consumerkit.transports.embedded`): for a worker, and for the audit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import confluent_kafka
from confluent_kafka import Consumer

from consumerkit.transports.base import TopicInfo
from consumerkit.transports.confluent.admin import TopicAdmin
from consumerkit.transports.confluent.transport import ConfluentTransport

_TIMEOUT = 10.0  # seconds for one question to the broker, which is on this machine
# A killed process's partitions move when its session times out. The timeout is short for those who
# watch, but longer than the embedded broker's first rebalance, which takes 3 s and forgets members
# with a shorter session.
_SHORT_SESSIONS = {"session.timeout.ms": 3_500, "heartbeat.interval.ms": 300}


class EmbeddedTransport(ConfluentTransport):
    """The confluent transport, for a broker that has no admin API.

    Args:
        address: The broker's `host:port`.
    """

    def __init__(self, address: str) -> None:
        super().__init__({"bootstrap.servers": address, "log_level": 0, **_SHORT_SESSIONS})
        self._admin = _Metadata(self._shared)


class _Metadata(TopicAdmin):
    """Sends metadata requests; the broker creates each topic that they name."""

    def describe(self, names: Collection[str]) -> dict[str, TopicInfo]:
        with _consumer(self._config) as client:
            found = {name: client.list_topics(name, timeout=_TIMEOUT).topics[name] for name in names}
        return {name: TopicInfo(name, name, len(topic.partitions)) for name, topic in found.items()}

    async def create_topics(self, partitions: Mapping[str, int]) -> None:
        await self.topics(partitions)


class DemoPartition(NamedTuple):
    """One partition's log as a consumer group sees it: first offset, offset after the last, committed offset."""

    first: int
    end: int
    committed: int


class DemoLog:
    """Reads the broker's log from outside.

    Args:
        address: The broker's `host:port`.
        group: The consumer group whose committed offsets to read.
    """

    def __init__(self, address: str, group: str) -> None:
        self._config = {"bootstrap.servers": address, "group.id": group, "log_level": 0}

    def partitions(self, topic: str) -> list[DemoPartition]:
        """Return the topic's partitions, in order."""
        with _consumer(self._config) as client:
            numbers = sorted(client.list_topics(topic, timeout=_TIMEOUT).topics[topic].partitions)
            asked = [confluent_kafka.TopicPartition(topic, number) for number in numbers]
            committed = client.committed(asked, timeout=_TIMEOUT)
            marks = [client.get_watermark_offsets(one, timeout=_TIMEOUT) for one in asked]
        return [
            DemoPartition(first, end, max(one.offset, 0)) for (first, end), one in zip(marks, committed, strict=True)
        ]

    def read(self, topic: str) -> list[confluent_kafka.Message]:
        """Return every record of the topic."""
        ends = self.partitions(topic)
        starts = [confluent_kafka.TopicPartition(topic, number, 0) for number in range(len(ends))]
        wanted = sum(one.end - one.first for one in ends)
        found: list[confluent_kafka.Message] = []
        with _consumer({**self._config, "auto.offset.reset": "earliest", "enable.auto.commit": False}) as client:
            client.assign(starts)
            while len(found) < wanted:
                batch = client.consume(wanted - len(found), _TIMEOUT)
                if not batch:
                    break
                found += [message for message in batch if message.error() is None]
        return found


@contextmanager
def _consumer(config: Mapping[str, object]) -> Iterator[Consumer]:
    settings: dict[str, Any] = {"group.id": "nobody", "allow.auto.create.topics": True, **config}
    client = Consumer(settings)
    try:
        yield client
    finally:
        client.close()
