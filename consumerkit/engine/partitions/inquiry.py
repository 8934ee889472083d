"""Asks what a takeover needs to know: the broker's answer, and where a first run begins."""

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
from consumerkit.engine.partitions.rebalances import Rebalances
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
    """Announces the errors that prevent takeovers.

    Attributes:
        wait: Seconds until the next try.
    """

    def __init__(self, announce: Announcer) -> None:
        self.wait = 0.0
        self._announce = announce
        self._rebalances = Rebalances()

    def over(self) -> None:
        """Record that nothing prevents a takeover."""
        self._rebalances.over()

    def tell(self, error: Exception) -> None:
        """Announce an error of the broker or of the database, unless it is an ordinary part of a rebalance."""
        if self._rebalances.explains(error):
            return
        where = "broker" if isinstance(error, Unavailable) else "database"
        self._announce(events.Trouble(where=where, error=failures.described(error), wait=self.wait))


class Inquiry:
    """Asks about the partitions of one engine, many at a time.

    Args:
        origin: The handler, with the identity that distinguishes its commits from another database's.
        consumer: Asked about partitions.
        first_runs: Knows where a first run begins.
        troubles: Announces why a question has no answer.
    """

    def __init__(self, origin: CommitOrigin, consumer: Consumer, first_runs: FirstRuns, troubles: Troubles) -> None:
        self._origin = origin
        self._consumer = consumer
        self._first_runs = first_runs
        self._troubles = troubles
        self._standings: dict[TopicPartition, Standing] = {}

    async def ask(self, names: Sequence[TopicPartition]) -> Asked:
        """Ask about partitions before their fences are taken, since the broker may be slow.

        Leaves out partitions that the broker does not describe or whose first run is undecided.
        """
        at = time.monotonic()
        if not names:
            return Asked({}, at)
        try:
            told = await self._consumer.describe(names)
        except Unavailable as error:
            self._troubles.tell(error)
            return Asked({}, at)
        # A partition without a leader must not prevent the takeover of others.
        if untold := sorted(set(names) - told.keys()):
            some = ", ".join(map(str, untold[:5])) + (", ..." if len(untold) > 5 else "")
            self._troubles.tell(Unavailable(f"the broker does not answer about {some}; check its leader"))
        return Asked(await self._decided(told), at)

    async def _decided(self, told: Mapping[TopicPartition, PartitionInfo]) -> Mapping[TopicPartition, PartitionInfo]:
        """Decide where first runs begin, before anything is read; leave out what stays undecided."""
        topics = {(name.topic, info.topic_id) for name, info in told.items()}
        for topic in sorted(self._first_runs.unknown(topics)):
            try:
                await self._first_runs.learn(topic)
            except Exception as error:  # noqa: BLE001 - announced, and tried again
                self._troubles.tell(error)
        unknown = self._first_runs.unknown(topics)
        return {name: info for name, info in told.items() if (name.topic, info.topic_id) not in unknown}

    async def place(self, partition: Partition, info: PartitionInfo) -> Wanted:
        """Return what the takeover of a partition needs.

        Raises:
            Unavailable: Its first run begins at its former end, which the broker does not tell.
        """
        name = partition.name
        first = await self._first_runs.find(name, info.topic_id)

        def place(standing: Standing) -> start_position.StartPosition:
            self._standings[name] = standing
            return start_position.beginning(self._origin, name, standing, info, first)

        return Wanted(partition, info, place)

    async def unusable(self, names: Sequence[TopicPartition]) -> set[TopicPartition]:
        """Ask again about partitions without a place to begin; return those that still have none.

        Raises:
            Unavailable: The broker did not answer.
        """
        fresh = await self._consumer.describe(names)
        return {name for name, info in fresh.items() if not self._usable(name, info)}

    def _usable(self, name: TopicPartition, fresh: PartitionInfo) -> bool:
        # A comparison of the answers would not help: under traffic the log's end always moves.
        first = self._first_runs.known(name, fresh.topic_id)
        with suppress(PartitionUnusable):
            start_position.beginning(self._origin, name, self._standings.get(name, Standing()), fresh, first)
            return True
        return False

    def forget(self, name: TopicPartition) -> None:
        """Record that a partition is no longer assigned."""
        self._standings.pop(name, None)
