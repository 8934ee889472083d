"""The transport in memory keeps the contract."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from typing_extensions import override

from consumerkit.message import Headers, TopicPartition
from consumerkit.transports.base import Subscription, Transport
from consumerkit.transports.memory import Memory, MemoryBroker
from tests.contracts.control import BrokerControl
from tests.contracts.rebalance_contract import RebalanceContract


class MemoryControl:
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.transport: Transport = Memory(self.broker)

    def subscription(self, group: str, *topics: str, **settings: Any) -> Subscription:
        return Subscription(group=group, topics=topics, **settings)

    async def create(self, topic: str, partitions: int) -> None:
        self.broker.create_topic(topic, partitions)

    async def topics(self) -> set[str]:
        return set(self.broker.logs.topics)

    async def append(
        self,
        topic: str,
        values: Sequence[bytes | None],
        partition: int = 0,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> None:
        for value in values:
            self.broker.append(topic, value, partition=partition, key=key, headers=headers)

    async def committed(self, group: str, topic: str) -> dict[TopicPartition, int]:
        return {at: offset for at, offset in self.broker.committed(group).items() if at.topic == topic}

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        self.broker.delete_before(topic, partition, offset)

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        with self.broker.outage():
            yield

    async def expire(self, group: str) -> None:
        await self.broker.expire(group)


class TestMemory(RebalanceContract):
    @pytest.fixture
    @override
    def control(self) -> BrokerControl:
        return MemoryControl()

    @pytest.fixture
    @override
    def private_control(self, control: BrokerControl) -> BrokerControl:
        return control
