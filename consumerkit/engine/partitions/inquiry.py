"""What must be known of partitions before they are taken over: the broker's word, and where a first run begins."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from consumerkit import events
from consumerkit.engine.partitions import start_position
from consumerkit.engine.partitions.commit_origin import CommitOrigin
from consumerkit.engine.partitions.first_runs import FirstRuns
from consumerkit.engine.partitions.partition import Partition
from consumerkit.engine.partitions.partition_store import Wanted
from consumerkit.engine.transaction import failures
from consumerkit.errors import PartitionUnusable, Unavailable
from consumerkit.events import Announcer
from consumerkit.message import TopicPartition
from consumerkit.storage.progress import Standing
from consumerkit.transports.base import Consumer, PartitionInfo


class Asked(NamedTuple):
    """The broker's answer, and the time of the question on the monotonic clock."""

    info: Mapping[TopicPartition, PartitionInfo]
    at: float


class Troubles:
    """Announces what keeps partitions from being taken over.

    Attributes:
        wait: Seconds until they are tried again.
    """

    def __init__(self, announce: Announcer) -> None:
        self.wait = 0.0
        self._announce = announce

    def tell(self, error: Exception) -> None:
        """Announce an error of the broker or of the database."""
        where = "broker" if isinstance(error, Unavailable) else "database"
        self._announce(events.Trouble(where=where, error=failures.described(error), wait=self.wait))


class Inquiry:
    """Asks about the partitions of one engine, many at a time.

    Args:
        origin: The handler, and what tells its commits from another database's.
        consumer: Asked about partitions.
        first_runs: Knows where a first run begins.
        troubles: Announces why a question was not answered.
    """

    def __init__(self, origin: CommitOrigin, consumer: Consumer, first_runs: FirstRuns, troubles: Troubles) -> None:
        self._origin = origin
        self._consumer = consumer
        self._first_runs = first_runs
        self._troubles = troubles
        self._standings: dict[TopicPartition, Standing] = {}

    async def ask(self, names: Sequence[TopicPartition]) -> Asked:
        """Ask about partitions; before the fences are taken, since the broker may be slow.

        Leaves out those that the broker does not tell, and those whose first run is not decided.
        """
        at = time.monotonic()
        if not names:
            return Asked({}, at)
        try:
            told = await self._consumer.describe(names)
        except Unavailable as error:
            self._troubles.tell(error)
            return Asked({}, at)
        # One partition without a leader keeps no other from being taken.
        if untold := sorted(set(names) - told.keys()):
            some = ", ".join(map(str, untold[:5])) + (", ..." if len(untold) > 5 else "")
            self._troubles.tell(Unavailable(f"the broker does not answer about {some}; check its leader"))
        return Asked(await self._decided(told), at)

    async def _decided(self, told: Mapping[TopicPartition, PartitionInfo]) -> Mapping[TopicPartition, PartitionInfo]:
        """Have it decided where a first run begins, before anything is read; leave out what is not decided."""
        topics = {(name.topic, info.topic_id) for name, info in told.items()}
        for topic in sorted(self._first_runs.unknown(topics)):
            try:
                await self._first_runs.learn(topic)
            except Exception as error:  # noqa: BLE001 - announced, and tried again
                self._troubles.tell(error)
        unknown = self._first_runs.unknown(topics)
        return {name: info for name, info in told.items() if (name.topic, info.topic_id) not in unknown}

    async def place(self, partition: Partition, info: PartitionInfo) -> Wanted:
        """Return what is needed to take a partition over.

        Raises:
            Unavailable: Its first run is to begin at what had been its end, and the broker does not tell.
        """
        name = partition.name
        first = await self._first_runs.find(name, info.topic_id)

        def place(standing: Standing) -> start_position.StartPosition:
            self._standings[name] = standing
            return start_position.beginning(self._origin, name, standing, info, first)

        return Wanted(partition, info, place)

    async def unusable(self, names: Sequence[TopicPartition]) -> set[TopicPartition]:
        """Ask again about partitions that could not be placed; return those that still cannot.

        Raises:
            Unavailable: The broker did not answer.
        """
        fresh = await self._consumer.describe(names)
        return {name for name, info in fresh.items() if not self._usable(name, info)}

    def _usable(self, name: TopicPartition, fresh: PartitionInfo) -> bool:
        # Not by comparing the answers: under traffic no two are the same, as the log's end moves on.
        first = self._first_runs.known(name, fresh.topic_id)
        with suppress(PartitionUnusable):
            start_position.beginning(self._origin, name, self._standings.get(name, Standing()), fresh, first)
            return True
        return False

    def forget(self, name: TopicPartition) -> None:
        """Record that a partition is not assigned any more."""
        self._standings.pop(name, None)
