"""A broker in memory: topics, partitions and consumer groups without a server, for tests.

`MemoryBroker` behaves like Kafka in everything that the contract in `consumerkit.transports.base` covers, including
rebalances and outages, so a worker under test runs unchanged. It belongs to one event loop; only `append` may be called
from other threads. Nothing survives the process.

Example:
    >>> broker = MemoryBroker(topics={"payments": 4})
    >>> broker.append("payments", b'{"amount": 5}', key=b"alice")
    Message(payments[1]@0)
    >>> [message.value for message in broker.records("payments")]
    [b'{"amount": 5}']

A test can cause a broker's faults instead of waiting for them: `outage`, `leaderless`, `acknowledging` (late and failed
answers), `cut_off` (a member that the group has given up), `expire`. It can also change a log as real ones change:
`add_partitions`, `append_control_records`, `delete_before`, `truncate`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Iterator, Mapping

from consumerkit.errors import StartError, Unavailable
from consumerkit.message import Headers, Message, TopicPartition
from consumerkit.transports.base import Consumer, LogReader, PlacingProducer, Record, Subscription, TopicInfo
from consumerkit.transports.memory.group import MemoryConsumer
from consumerkit.transports.memory.log import Logs, PartitionLog
from consumerkit.transports.memory.log_reader import MemoryReader
from consumerkit.transports.memory.members import MemoryGroup, wake_all
from consumerkit.transports.memory.producer import Acknowledgement, Answers, Intake, IntakeProducer

__all__ = ["Acknowledgement", "Memory", "MemoryBroker", "MemoryProducer"]


class MemoryBroker:
    """Topics and consumer groups in memory.

    Args:
        topics: The number of partitions of each topic, by name.
        max_record_bytes: Larger records are refused, as by Kafka's `message.max.bytes`.
    """

    def __init__(self, topics: Mapping[str, int] | None = None, *, max_record_bytes: int = 1_048_588) -> None:
        self.logs = Logs()
        self.intake = Intake(self.logs, self._take, max_record_bytes)
        self._groups: dict[str, MemoryGroup] = {}
        for name, partitions in (topics or {}).items():
            self.create_topic(name, partitions)

    @property
    def max_record_bytes(self) -> int:
        """Larger records are refused."""
        return self.intake.max_record_bytes

    @max_record_bytes.setter
    def max_record_bytes(self, size: int) -> None:
        self.intake.max_record_bytes = size

    @property
    def available(self) -> bool:
        """Whether the broker answers; see `outage`."""
        return self.logs.available

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic, unless there is one by this name."""
        self.logs.create(name, partitions)

    def add_partitions(self, topic: str, partitions: int) -> None:
        """Raise a topic's number of partitions to `partitions`.

        As with Kafka, a group notices at its next rebalance; see `rebalance`.

        Args:
            topic: The name of an existing topic.
            partitions: The new total.

        Raises:
            KeyError: There is no such topic.
            ValueError: The topic already has more partitions.
        """
        self.logs.topics[topic].grow(partitions)

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
            timestamp: Milliseconds since the epoch; None means now.

        Raises:
            KeyError: There is no such topic.
        """
        record = self.logs.topics[topic].append(key, value, headers, partition, timestamp)
        wake_all(self._groups.values())
        return record

    def append_control_records(self, topic: str, partition: int, count: int = 1) -> None:
        """Add `count` offsets without a message for consumers.

        Markers of transactions, aborted records and compacted ones look like that to a consumer.
        """
        self._log(topic, partition).append_control_records(count)
        wake_all(self._groups.values())

    def records(self, topic: str) -> list[Message]:
        """Return all records of a topic, partition by partition, in offset order."""
        return [record for log in self.logs.topics[topic].partitions for record in log.read(log.start, log.end)]

    def committed(self, group: str) -> dict[TopicPartition, int]:
        """Return what a group has committed; a partition without a committed offset is absent."""
        return dict(self.group(group).offsets)

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Forget the records before `offset`, as retention does; readers behind it fail.

        Raises:
            ValueError: The log ends before `offset`.
        """
        self._log(topic, partition).delete_before(offset)
        wake_all(self._groups.values())

    def truncate(self, topic: str, partition: int, offset: int) -> None:
        """Forget the records from `offset` on, as an unclean leader election does; readers beyond it fail."""
        self._log(topic, partition).truncate(offset)
        wake_all(self._groups.values())

    async def expire(self, group: str) -> None:
        """End the sessions of all members of a group: they lose their partitions, then join again."""
        await self.group(group).expire()

    async def rebalance(self, group: str) -> None:
        """Take all partitions from the members of a group and assign them again, added ones included."""
        await self.group(group).rebalance()

    @contextlib.asynccontextmanager
    async def cut_off(self, group: str, member: int = 0) -> AsyncIterator[None]:
        """Give a member up within the `async with` block, without telling it: the others own its partitions.

        It continues its open work, like a process that was paused and wakes. It fetches nothing, its commits fail, and
        at the block's end it loses its partitions and joins again.

        Args:
            group: The name of the group.
            member: Which member, by age: 0 is the oldest.

        Raises:
            IndexError: The group has no such member.
        """
        members = self.group(group)
        given_up = members.members[member]
        await members.remove(given_up)
        try:
            yield
        finally:
            await members.readmit(given_up)

    @contextlib.contextmanager
    def leaderless(self, topic: str, partition: int) -> Iterator[None]:
        """Leave a partition without a leader within the `with` block.

        Fetches return none of its messages, sends to it fail for now, and the ends of its log are unknown; `append`
        still works.
        """
        log = self._log(topic, partition)
        log.has_leader = False
        try:
            yield
        finally:
            log.has_leader = True
            wake_all(self._groups.values())

    @contextlib.contextmanager
    def acknowledging(self, answers: Answers) -> Iterator[None]:
        """Answer producers as `answers` says within the `with` block; it is called once for each record.

        Records enter the log in the order in which they are sent, whenever their answers come.

        Example:
            >>> from consumerkit.transports.memory import Acknowledgement, MemoryBroker
            >>> broker = MemoryBroker(topics={"receipts": 1})
            >>> with broker.acknowledging(lambda record: Acknowledgement(delay=0.05)):
            ...     pass  # run a worker whose handler publishes
        """
        before, self.intake.answers = self.intake.answers, answers
        try:
            yield
        finally:
            self.intake.answers = before

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Answer no call within the `with` block: fetches return nothing, commits and sends fail."""
        self._switch(available=False)
        try:
            yield
        finally:
            self._switch(available=True)

    def group(self, name: str) -> MemoryGroup:
        """Return the group of this name; creates it if there is none."""
        if name not in self._groups:
            self._groups[name] = MemoryGroup(self.logs)
        return self._groups[name]

    def _switch(self, *, available: bool) -> None:
        self.logs.available = available
        wake_all(self._groups.values())

    def _take(self, record: Record, partition: int) -> Message:
        return self.append(record.topic, record.value, key=record.key, headers=record.headers, partition=partition)

    def _log(self, topic: str, partition: int) -> PartitionLog:
        return self.logs.topics[topic].partitions[partition]


class MemoryProducer(IntakeProducer):
    """Sends to a `MemoryBroker`; see `consumerkit.transports.base.Producer`."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker.intake)


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

    def producer(self) -> PlacingProducer:
        """Make a producer."""
        return MemoryProducer(self.broker)

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> LogReader:
        """Make a reader outside any group."""
        return MemoryReader(self.broker.logs, topic, offsets or {})

    async def topics(self, names: Collection[str]) -> dict[str, TopicInfo]:
        """Describe the topics that exist."""
        self._reach()
        found = {name: self.broker.logs.topics[name] for name in names if name in self.broker.logs.topics}
        return {name: TopicInfo(name, topic.id, len(topic.partitions)) for name, topic in found.items()}

    async def keeps(self, names: Collection[str]) -> dict[str, float]:
        """Return what each topic's `keeps` says."""
        self._reach()
        return {name: self.broker.logs.topics[name].keeps for name in names if name in self.broker.logs.topics}

    async def create_topics(self, partitions: Mapping[str, int]) -> None:
        """Create the topics that do not exist."""
        self._reach()
        for name, number in partitions.items():
            self.broker.create_topic(name, number)

    async def leave(self, group: str, members: Collection[str]) -> None:
        """End the sessions of members: they lose their partitions, and join again."""
        if not self.broker.available:
            raise Unavailable("the broker in memory is down")
        for member in self.broker.group(group).members:
            if member.name in members:
                await self.broker.group(group).remove(member)
                await self.broker.group(group).readmit(member)

    def _reach(self) -> None:
        if not self.broker.available:
            raise StartError("the broker in memory is down")
