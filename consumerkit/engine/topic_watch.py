"""Asks the broker about an engine's topics from time to time, and notices what no other part would.

A topic may be recreated while it is read: a client then goes on in the new log, at the old log's position. A partition
may stand still. And a broker may be away from a process that has no partition, which asks it nothing else.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection
from typing import Final

from consumerkit import events
from consumerkit.engine.partitions.table import Partitions
from consumerkit.engine.standstill import Standstill
from consumerkit.errors import PartitionUnusable, Unavailable
from consumerkit.events import Announcer
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Consumer, PartitionInfo

ASKED_EVERY: Final = 30.0


class TopicWatch:
    """Asks the broker about an engine's topics from time to time, about all partitions of a topic at once.

    Args:
        topics: The handler's topics.
        consumer: Asks the broker.
        partitions: The assigned partitions.
        announce: Announces events.
        standstill: Gets the broker's answers.
    """

    def __init__(
        self,
        topics: Collection[str],
        consumer: Consumer,
        partitions: Partitions,
        announce: Announcer,
        standstill: Standstill,
    ) -> None:
        self._declared = topics
        self._consumer = consumer
        self._partitions = partitions
        self._announce = announce
        self._standstill = standstill
        self._pause = ASKED_EVERY
        self._since: float | None = None

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            self._pause = ASKED_EVERY * random.uniform(0.75, 1.0)
            await asyncio.sleep(self._pause)
            # One topic at a time: a missing topic must not hide the others.
            for topic in sorted({partition.name.topic for partition in self._partitions} or self._declared):
                await self._look(topic)

    async def _look(self, topic: str) -> None:
        now = time.monotonic()
        try:
            told = await self._asked(topic)
        except Unavailable as trouble:
            self._since = self._since or now
            told_as = events.Trouble(where="broker", error=str(trouble), wait=self._pause)
            self._announce(told_as)
            return
        if self._since is not None:
            self._announce(events.TroubleOver(where="broker", seconds=now - self._since))
            self._since = None
        for partition in self._partitions.owned():
            info = told.get(partition.name)
            if info is not None and partition.topic_id != info.topic_id and partition.fencing_token:
                error = f"topic {topic!r} has another ID: it was {partition.topic_id} and is {info.topic_id}"
                # The next takeover compares the topic with the one of the mark.
                self._partitions.in_doubt({partition.name: partition.fencing_token}, PartitionUnusable(error))
        self._standstill.look(topic, self._partitions, told, now)

    async def _asked(self, topic: str) -> dict[TopicPartition, PartitionInfo]:
        """Return the broker's answer about our partitions of a topic; without any, only learn that it answers."""
        if ours := [one.name for one in self._partitions if one.name.topic == topic]:
            return await self._consumer.describe(ours)
        await self._consumer.survey(topic)
        return {}
