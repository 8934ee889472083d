"""The broker in memory as a test needs it: it answers soon, and has each topic that is published to."""

from __future__ import annotations

from collections.abc import Sequence

from consumerkit.message import Message
from consumerkit.transports.base import Acknowledged, Consumer, PlacingProducer, Record, SendFailure, Subscription
from consumerkit.transports.memory import Memory, MemoryBroker, MemoryProducer
from consumerkit.transports.memory.group import MemoryConsumer

_LONGEST_FETCH = 0.02
"""Seconds that a fetch waits for a message: a worker under test is stopped often, and each stop waits for a fetch."""


class PromptMemory(Memory):
    """The transport of a broker in memory for a worker under test."""

    def consumer(self, subscription: Subscription) -> Consumer:
        """Make a consumer."""
        return _PromptConsumer(self.broker.group(subscription.group), subscription)

    def producer(self) -> PlacingProducer:
        """Make a producer that creates the topics which it sends to."""
        return _CreatingProducer(self.broker)


class _PromptConsumer(MemoryConsumer):
    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        return await super().fetch(limit, min(timeout, _LONGEST_FETCH))


class _CreatingProducer(MemoryProducer):
    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self._broker = broker

    async def place(self, records: Sequence[Record]) -> list[Acknowledged | SendFailure]:
        for topic in {one.topic for one in records}:
            self._broker.create_topic(topic, 1)
        return await super().place(records)
