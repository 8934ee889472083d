"""Topics in memory: append-only partitions."""

from __future__ import annotations

import bisect
import time
import uuid
from collections.abc import Iterable, Sequence

from consumerkit.message import Headers, Message, TopicPartition
from consumerkit.transports.partitioner import partition_of


class PartitionLog:
    """One partition: the records from `start` up to `end`.

    Attributes:
        start: The first offset in the log.
        end: The offset that the next record will get.
        has_leader: Whether a broker leads it; without one it can be neither read nor written.
    """

    __slots__ = ("_offsets", "_records", "end", "has_leader", "start")

    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        self.has_leader = True
        self._records: list[Message] = []
        self._offsets: list[int] = []  # of the records; there may be gaps

    def append(self, record: Message) -> None:
        """Add a record, which must carry the offset `end`."""
        self._records.append(record)
        self._offsets.append(record.offset)
        self.end = record.offset + 1

    def append_control_records(self, count: int) -> None:
        """Add offsets without a message for readers."""
        self.end += count

    def read(self, offset: int, limit: int) -> list[Message]:
        """Return at most `limit` records from `offset` on."""
        at = bisect.bisect_left(self._offsets, offset)
        return self._records[at : at + limit]

    def position_after(self, records: Sequence[Message], limit: int) -> int:
        """Return where to continue after a `read`: at the end if it returned fewer than `limit`."""
        return records[-1].offset + 1 if len(records) == limit else self.end

    def delete_before(self, offset: int) -> None:
        """Forget the records before `offset`, as retention does.

        Raises:
            ValueError: The log ends before `offset`.
        """
        if offset > self.end:
            raise ValueError(f"the log ends at offset {self.end}, so nothing can be deleted before {offset}")
        at = bisect.bisect_left(self._offsets, offset)
        del self._records[:at], self._offsets[:at]
        self.start = max(self.start, offset)

    def truncate(self, offset: int) -> None:
        """Forget the records from `offset` on, as an unclean leader election does."""
        at = bisect.bisect_left(self._offsets, offset)
        del self._records[at:], self._offsets[at:]
        self.end = min(self.end, offset)


class TopicLog:
    """One topic: its partitions, and an ID that a recreated topic of the same name does not share.

    `keeps` is the age in seconds beyond which records may be deleted; it is only reported, and no
    record is deleted.
    """

    def __init__(self, name: str, partitions: int) -> None:
        self.name = name
        self.id = str(uuid.uuid4())
        self.keeps = 7 * 86_400.0  # Kafka's default
        self.partitions = [PartitionLog() for _ in range(partitions)]
        self._turn = 0

    def append(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        partition: int | None,
        timestamp: int | None = None,
    ) -> Message:
        """Add a record to the partition that its key chooses; records without a key take turns."""
        number = self.partition_for(key) if partition is None else partition
        log = self.partitions[number]
        stamp = time.time_ns() // 1_000_000 if timestamp is None else timestamp
        record = Message(self.name, number, log.end, key, value, headers, stamp, self.id)
        log.append(record)
        return record

    def partition_for(self, key: bytes | None) -> int:
        """Return the number of the partition that the next record with this key goes to."""
        if key is None:
            self._turn += 1
            return (self._turn - 1) % len(self.partitions)
        return partition_of(key, len(self.partitions))

    def grow(self, partitions: int) -> None:
        """Raise the number of partitions.

        Raises:
            ValueError: There are more already.
        """
        have = len(self.partitions)
        if partitions < have:
            raise ValueError(f"topic {self.name!r} has {have} partitions, and a topic never has fewer than before")
        self.partitions += [PartitionLog() for _ in range(partitions - have)]


class Logs:
    """All topics of one broker in memory.

    Attributes:
        topics: By name.
        available: Whether the broker answers.
    """

    def __init__(self) -> None:
        self.available = True
        self.topics: dict[str, TopicLog] = {}

    def create(self, name: str, partitions: int) -> None:
        """Create a topic, unless there is one by this name."""
        if partitions < 1:
            raise ValueError(f"topic {name!r} needs at least one partition, not {partitions}")
        if name not in self.topics:
            self.topics[name] = TopicLog(name, partitions)

    def partitions(self, topics: Iterable[str]) -> list[TopicPartition]:
        """Return all partitions of the topics, in order."""
        return [
            TopicPartition(name, number)
            for name in sorted(topics)
            if name in self.topics
            for number in range(len(self.topics[name].partitions))
        ]

    def partition(self, of: TopicPartition) -> PartitionLog:
        """Return one partition's log."""
        return self.topics[of.topic].partitions[of.partition]
