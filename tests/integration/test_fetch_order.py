"""Fetches that time out while partitions change owners: messages stay in order, and none is skipped."""

import asyncio
from collections.abc import Collection, Mapping
from typing import get_args

import pytest

from consumerkit.errors import PartitionUnusable
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Consumer, Position, Subscription
from consumerkit.transports.kafka import Client, Kafka
from tests.contracts.member import until
from tests.integration.kafka_stage import OPTIONS, Given, KafkaStage


class SlowListener:
    """Takes longer over each change than a fetch waits."""

    def __init__(self, delay: float) -> None:
        self.taken_on = asyncio.Event()
        self.given_up = asyncio.Event()
        self._delay = delay

    async def assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        await asyncio.sleep(self._delay)
        if partitions:
            self.taken_on.set()

    async def revoked(self, _partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        await asyncio.sleep(self._delay)
        self.given_up.set()
        return {}

    async def lost(self, _partitions: Collection[TopicPartition]) -> None:
        await asyncio.sleep(self._delay)

    async def failed(self, partition: TopicPartition, error: PartitionUnusable) -> None:
        raise AssertionError(f"{partition}: {error}")


@pytest.mark.parametrize("transport", get_args(Client))
async def test_a_fetch_that_runs_out_in_a_rebalance_leaves_no_gap(stage: KafkaStage, transport: Client) -> None:
    made = Kafka(stage.kafka.bootstrap, transport=transport, options=OPTIONS[transport]).connect()
    subscription = Subscription(group=stage.topic, topics=(stage.topic,))
    one, listener = made.consumer(subscription), SlowListener(0.3)
    chains: dict[tuple[int, int], list[int]] = {}
    over = asyncio.Event()

    async def reading() -> None:
        while not over.is_set():
            for message in await one.fetch(50, 0.02):
                chains.setdefault((message.partition, message.epoch), []).append(message.offset)

    async def sending() -> None:
        while not over.is_set():
            await asyncio.to_thread(stage.send, [Given(b"x", partition=n % 2) for n in range(400)])

    await one.start(listener)
    tasks = [asyncio.create_task(reading()), asyncio.create_task(sending())]
    try:
        for _ in range(3):
            other, others = made.consumer(subscription), SlowListener(0.0)
            await other.start(others)
            await asyncio.wait_for(others.taken_on.wait(), 120)
            before = set(chains)
            listener.taken_on.clear()
            await other.stop()
            await asyncio.wait_for(listener.taken_on.wait(), 120)
            await until(lambda: set(chains) > before, "what came back to be read")  # noqa: B023 - awaited here
    finally:
        over.set()
        await asyncio.gather(*tasks)
        await one.stop()
    assert len(chains) >= 3  # each of the three rounds began one
    # Nothing is ever committed here, so each assignment begins at the beginning.
    for place, offsets in chains.items():
        assert offsets == list(range(len(offsets))), place


@pytest.mark.parametrize("transport", get_args(Client))
async def test_a_partition_that_went_while_nobody_fetched_is_read_when_it_comes_back(
    stage: KafkaStage, transport: Client
) -> None:
    made = Kafka(stage.kafka.bootstrap, transport=transport, options=OPTIONS[transport]).connect()
    subscription = Subscription(group=stage.topic, topics=(stage.topic,))
    one, other, listener = made.consumer(subscription), made.consumer(subscription), SlowListener(0.0)
    await asyncio.to_thread(stage.send, [Given(b"x", partition=n % 2) for n in range(20)])
    await one.start(listener)
    await _reads(one, {0, 1})
    # Long enough for a client to hold its partitions back, because their messages are not taken.
    await asyncio.sleep(1.5)
    await other.start(SlowListener(0.0))
    await asyncio.wait_for(listener.given_up.wait(), 120)
    await asyncio.sleep(1.5)
    await asyncio.to_thread(stage.send, [Given(b"y", partition=n % 2) for n in range(20)])
    reading = asyncio.create_task(_reads(one, {0, 1}, value=b"y"))
    await asyncio.sleep(0.5)
    await other.stop()
    await reading
    await one.stop()


async def _reads(consumer: Consumer, partitions: set[int], value: bytes = b"x") -> None:
    """Fetch until such a message of each partition has come."""
    left = set(partitions)
    async with asyncio.timeout(120):
        while left:
            left -= {message.partition for message in await consumer.fetch(50, 0.5) if message.value == value}
