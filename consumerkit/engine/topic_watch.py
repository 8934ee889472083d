"""Notices that a topic was made anew while it is read: a client goes on in the new log, at the old one's position."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from consumerkit import events
from consumerkit.engine.partition import Partitions
from consumerkit.errors import PartitionUnusable, Unavailable
from consumerkit.events import Announcer
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Consumer

ASKED_EVERY: Final = 30.0


class TopicWatch:
    """Asks the broker for the topics' IDs from time to time, by one partition of each.

    Args:
        handler: The handler's name, for the announcements.
        consumer: Asked.
        partitions: What is assigned.
        announce: Told what happened.
        doubt: Has a partition taken anew, where its topic is compared with the one that its mark was made in.
    """

    def __init__(
        self,
        handler: str,
        consumer: Consumer,
        partitions: Partitions,
        announce: Announcer,
        doubt: Callable[[TopicPartition, bytes, Exception], None],
    ) -> None:
        self._handler = handler
        self._consumer = consumer
        self._partitions = partitions
        self._announce = announce
        self._doubt = doubt

    async def run(self) -> None:
        """Ask, until cancelled."""
        while True:
            await asyncio.sleep(ASKED_EVERY * random.uniform(0.75, 1.0))
            # One at a time: one that is gone must not keep the others from being told of.
            for one in {partition.name.topic: partition.name for partition in self._partitions.owned()}.values():
                await self._look(one)

    async def _look(self, one: TopicPartition) -> None:
        try:
            told = (await self._consumer.describe([one])).get(one)
        except Unavailable as trouble:
            told_as = events.Trouble(handler=self._handler, where="broker", error=str(trouble), wait=ASKED_EVERY)
            self._announce(told_as)
            return
        if told is None:  # it went meanwhile
            return
        for partition in self._partitions.owned():
            if partition.name.topic == one.topic and partition.topic_id != told.topic_id and partition.owner:
                error = f"topic {one.topic!r} has another ID: it was {partition.topic_id} and is {told.topic_id}"
                self._doubt(partition.name, partition.owner, PartitionUnusable(error))
