"""A broker in memory: topics, partitions and consumer groups without a server, for tests.

`MemoryBroker` behaves as Kafka does in all that the contract in `consumerkit.transports.base` speaks of, rebalances and
outages included, so a worker under test runs unchanged. It belongs to one event loop; only `append` may be called from
other threads. Nothing survives the process.

Example:
    >>> broker = MemoryBroker(topics={"payments": 4})
    >>> broker.append("payments", b'{"amount": 5}', key=b"alice")
    Message(payments[1]@0)
    >>> [message.value for message in broker.records("payments")]
    [b'{"amount": 5}']
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence

from consumerkit.errors import PartitionUnusable, StartError
from consumerkit.message import Headers, Message, TopicPartition
from consumerkit.transports.base import (
    Consumer,
    LogReader,
    Producer,
    Record,
    SendFailure,
    Span,
    Subscription,
    TopicInfo,
)
from consumerkit.transports.memory_group import MemoryConsumer, MemoryGroup, wake_all
from consumerkit.transports.memory_log import Logs
from consumerkit.transports.spans import Spans

_OVERHEAD = 70  # what Kafka adds to a lone record: batch header and lengths


class MemoryBroker:
    """Topics and consumer groups in memory.

    Args:
        topics: The number of partitions of each topic, by name.
        max_record_bytes: Larger records are refused, as by Kafka's `message.max.bytes`.
    """

    def __init__(self, topics: Mapping[str, int] | None = None, *, max_record_bytes: int = 1_048_588) -> None:
        self.max_record_bytes = max_record_bytes
        self.logs = Logs()
        self._groups: dict[str, MemoryGroup] = {}
        self._available = True
        for name, partitions in (topics or {}).items():
            self.create_topic(name, partitions)

    @property
    def available(self) -> bool:
        """Whether the broker answers; see `outage`."""
        return self._available

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic, unless there is one by this name."""
        self.logs.create(name, partitions)

    def append(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp: int | None = None,
    ) -> Message:
        """Add a record and return it as consumers will see it.

        Args:
            topic: The name of an existing topic.
            value: The record's value; None is a tombstone.
            key: Chooses the partition, by the same hash as Kafka's own producers; records without a key take turns.
            headers: The record's headers, in order.
            partition: Overrides the key's choice.
            timestamp: Milliseconds since the epoch; now, where None.

        Raises:
            KeyError: There is no such topic.
        """
        record = self.logs.topics[topic].append(key, value, headers, partition, timestamp)
        wake_all(self._groups.values())
        return record

    def records(self, topic: str) -> list[Message]:
        """Return all records of a topic, partition by partition, in offset order."""
        return [record for log in self.logs.topics[topic].partitions for record in log.read(log.start, log.end)]

    def committed(self, group: str) -> dict[TopicPartition, int]:
        """Return what a group has committed; a partition without a committed offset is absent."""
        return dict(self.group(group).offsets)

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Forget the records before `offset`, as retention does; readers behind it fail."""
        self.logs.topics[topic].partitions[partition].delete_before(offset)
        wake_all(self._groups.values())

    async def expire(self, group: str) -> None:
        """End the session of all members of a group: they lose their partitions, then join again."""
        await self.group(group).expire()

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Answer nobody within the `with` block: fetches return nothing, commits and sends fail."""
        self._switch(available=False)
        try:
            yield
        finally:
            self._switch(available=True)

    def group(self, name: str) -> MemoryGroup:
        """Return the group by this name, new where nobody has used it yet."""
        if name not in self._groups:
            self._groups[name] = MemoryGroup(self.logs)
            self._groups[name].available = self._available
        return self._groups[name]

    def _switch(self, *, available: bool) -> None:
        self._available = available
        for group in self._groups.values():
            group.available = available
        wake_all(self._groups.values())


class Memory:
    """The transport of a `MemoryBroker`.

    Args:
        broker: May be shared by any number of transports of one event loop.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker

    def consumer(self, subscription: Subscription) -> Consumer:
        """Make a consumer."""
        return MemoryConsumer(self.broker.group(subscription.group), subscription)

    def producer(self) -> Producer:
        """Make a producer."""
        return MemoryProducer(self.broker)

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> LogReader:
        """Make a reader outside of any group."""
        return MemoryReader(self.broker, topic, offsets or {})

    async def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        """Describe those of the topics that exist."""
        self._reach()
        found = {name: self.broker.logs.topics[name] for name in names if name in self.broker.logs.topics}
        return {name: TopicInfo(name, topic.id, len(topic.partitions)) for name, topic in found.items()}

    async def keeps(self, names: Collection[str]) -> dict[str, float]:
        """Return what each topic's `keeps` says."""
        self._reach()
        return {name: self.broker.logs.topics[name].keeps for name in names if name in self.broker.logs.topics}

    async def create_topics(self, partitions: Mapping[str, int]) -> None:
        """Create those of the topics that do not exist."""
        self._reach()
        for name, number in partitions.items():
            self.broker.create_topic(name, number)

    def _reach(self) -> None:
        if not self.broker.available:
            raise StartError("the broker in memory is down")


class MemoryProducer:
    """Appends to a `MemoryBroker`; see `consumerkit.transports.base.Producer`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    async def start(self) -> None:
        """Connect: nothing to do in memory."""

    async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
        """Append all records; one answer per record."""
        return [self._send(record) for record in records]

    async def stop(self) -> None:
        """Disconnect: nothing to do in memory."""

    def _send(self, record: Record) -> SendFailure | None:
        broker = self._broker
        if not broker.available:
            return SendFailure("_TRANSPORT", "the broker in memory is down", permanent=False)
        if record.topic not in broker.logs.topics:
            return SendFailure("UNKNOWN_TOPIC_OR_PART", f"no such topic: {record.topic}", permanent=True)
        size = Message("", 0, 0, record.key, record.value, record.headers).size + _OVERHEAD
        if size > broker.max_record_bytes:
            words = f"{size} bytes are more than the broker's {broker.max_record_bytes}"
            return SendFailure("MSG_SIZE_TOO_LARGE", words, permanent=True)
        broker.append(record.topic, record.value, key=record.key, headers=record.headers)
        return None


class MemoryReader:
    """Reads a topic of a `MemoryBroker`; see `consumerkit.transports.base.LogReader`."""

    def __init__(self, broker: MemoryBroker, topic: str, offsets: Mapping[int, int]) -> None:
        self._broker = broker
        self._topic = topic
        self._offsets = offsets
        self._spans = Spans({})

    async def start(self) -> Mapping[int, Span]:
        """Return what will be read of each partition."""
        if not self._broker.available:
            raise StartError("the broker in memory is down")
        if self._topic not in self._broker.logs.topics:
            raise StartError(f"no such topic: {self._topic}")
        logs = enumerate(self._broker.logs.topics[self._topic].partitions)
        self._spans = Spans({number: Span(log.start, log.end) for number, log in logs}, self._offsets)
        return self._spans.read

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        """Return what is there, at most `limit` messages."""
        found: list[Message] = []
        if not self._broker.available:
            await asyncio.sleep(timeout)
            return found
        for number, position in self._spans.open().items():
            log = self._broker.logs.topics[self._topic].partitions[number]
            if position < log.start:
                raise PartitionUnusable(f"{self._topic}[{number}]: offset {position} is outside the log")
            found += self._spans.taken(log.read(position, limit - len(found)))
        return found

    @property
    def positions(self) -> Mapping[int, int]:
        """How far each partition is read."""
        return self._spans.positions

    @property
    def finished(self) -> bool:
        """Whether everything was returned."""
        return not self._spans.open()

    async def stop(self) -> None:
        """Disconnect: nothing to do in memory."""
