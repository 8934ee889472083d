"""The far side of both Kafka transports: a real broker, reached past the transport under test."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import confluent_kafka
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType  # type: ignore[import-untyped]
from aiokafka.errors import MemberIdRequired  # type: ignore[import-untyped]
from aiokafka.protocol.admin import DescribeGroupsRequest  # type: ignore[import-untyped]
from aiokafka.protocol.group import JoinGroupRequest  # type: ignore[import-untyped]
from aiokafka.record.util import calc_crc32c  # type: ignore[import-untyped]
from confluent_kafka import Producer, TopicCollection
from confluent_kafka.admin import AdminClient

from consumerkit.message import Headers, TopicPartition
from consumerkit.transports.base import Subscription, Transport
from tests.services import KafkaServer
from tests.services.offsets import CommittedOffsets

_PLACEHOLDER = "header-name"


class KafkaControl:
    """A broker and a transport.

    Args:
        server: The broker; one of our own where a test calls `outage` or `expire`.
        transport: What is tested.
        outage: Seconds that an outage lasts at least.
        session: The session timeout that the transport was given, in seconds.
    """

    def __init__(self, server: KafkaServer, transport: Transport, *, outage: float = 0.0, session: float = 45) -> None:
        self.transport = transport
        self._server = server
        self._outage = outage
        self._session = session
        self._config: dict[str, str | int | float | bool] = {"bootstrap.servers": server.bootstrap, "log_level": 0}

    def subscription(self, group: str, *topics: str, **settings: Any) -> Subscription:
        return Subscription(group=group, topics=topics, **settings)

    async def create(self, topic: str, partitions: int, settings: dict[str, str] | None = None) -> None:
        await asyncio.to_thread(self._server.create_topic, topic, partitions, settings)

    async def topics(self) -> set[str]:
        admin = AdminClient(self._config)
        return set((await asyncio.to_thread(admin.list_topics, timeout=20)).topics)

    async def topic_id(self, topic: str) -> str:
        """Kafka's own notation of the ID, which its tools print: 16 bytes in URL-safe base64 without padding."""
        admin = AdminClient(self._config)
        asked = admin.describe_topics(TopicCollection([topic]), request_timeout=20)
        return str((await asyncio.wrap_future(asked[topic])).topic_id).translate(str.maketrans("+/", "-_"))

    async def delete(self, topic: str) -> None:
        await asyncio.to_thread(self._server.delete_topic, topic)

    async def append(
        self,
        topic: str,
        values: Sequence[bytes | None],
        partition: int = 0,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> None:
        await asyncio.to_thread(self._append, topic, values, partition, key, headers)

    async def committed(self, group: str, topic: str) -> dict[TopicPartition, int]:
        found = await asyncio.to_thread(self._committed, group, topic)
        return {TopicPartition(topic, number): offset for number, offset in found.items() if offset >= 0}

    def _committed(self, group: str, topic: str) -> dict[int, int]:
        with CommittedOffsets(self._config, group, topic) as offsets:
            return offsets.read()

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        admin = AdminClient(self._config)
        at = confluent_kafka.TopicPartition(topic, partition, offset)
        deleted = await asyncio.wrap_future(admin.delete_records([at])[at])
        assert deleted.low_watermark == offset  # the fault fired

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self._server.pause()
        began = time.monotonic()
        try:
            yield
            await asyncio.sleep(max(0.0, self._outage - (time.monotonic() - began)))
        finally:
            self._server.resume()
        await self.topics()

    async def expire(self, group: str) -> None:
        """Stop the broker for longer than a session, which ends it for client and broker alike."""
        self._server.pause()
        try:
            await asyncio.sleep(self._session + 3)
        finally:
            self._server.resume()
        await self.topics()

    async def members(self, group: str) -> set[str]:
        """The IDs of a group's members."""
        admin = AdminClient(self._config)
        found = await asyncio.wrap_future(admin.describe_consumer_groups([group])[group])
        return {member.member_id for member in found.members}

    async def kind(self, group: str) -> str:
        """The protocol of a group, as the broker names it."""
        admin = AdminClient(self._config)
        found = await asyncio.wrap_future(admin.describe_consumer_groups([group])[group])
        return str(found.type.name)

    @contextlib.asynccontextmanager
    async def dead_member(self, group: str) -> AsyncIterator[str]:
        """Have a member in the group that never says another word, and whose session lasts for longer than any test."""
        client = AIOKafkaClient(bootstrap_servers=self._server.bootstrap)
        await client.bootstrap()
        try:
            node = await client.coordinator_lookup(CoordinationType.GROUP, group)
            # It speaks as the first member does: librdkafka's leader crashes over metadata of another client.
            described = await client.send(node, DescribeGroupsRequest([group]), group=ConnectionGroup.COORDINATION)
            ((_, _, _, _, protocol, members, *_),) = described.groups
            protocols = [(protocol, members[0][3])]
            answer, name = None, ""
            while answer is None or answer.error_code == MemberIdRequired.errno:
                join = JoinGroupRequest(group, 600_000, 600_000, name, None, "consumer", protocols)
                answer = await client.send(node, join, group=ConnectionGroup.COORDINATION)
                name = answer.member_id
            assert answer.error_code == 0
            yield name
        finally:
            await client.close()

    async def transaction(self, topic: str, values: Sequence[bytes], *, commit: bool) -> None:
        await asyncio.to_thread(self._transaction, topic, values, commit)

    @contextlib.asynccontextmanager
    async def open_transaction(self, topic: str, values: Sequence[bytes], partition: int) -> AsyncIterator[None]:
        producer = Producer({**self._config, "transactional.id": f"test-{uuid.uuid4().hex[:8]}"})
        await asyncio.to_thread(producer.init_transactions, 30)
        producer.begin_transaction()
        for value in values:
            producer.produce(topic, value, partition=partition)
        assert await asyncio.to_thread(producer.flush, 30) == 0
        try:
            yield
        finally:
            await asyncio.to_thread(producer.abort_transaction, 30)

    async def append_with_headers(self, topic: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._server.bootstrap)
        await producer.start()
        try:
            batch = producer.create_batch()
            # Every client takes text for a header's name, so a placeholder of the same length is put in, then replaced.
            stand_ins = [(f"{at}{_PLACEHOLDER}"[: len(name)], value) for at, (name, value) in enumerate(headers)]
            batch.append(key=None, value=b"odd", timestamp=None, headers=stand_ins)
            data = bytes(batch._build())
            for (stand_in, _), (name, _) in zip(stand_ins, headers, strict=True):
                assert data.count(stand_in.encode()) == 1
                data = data.replace(stand_in.encode(), name)
            # A batch's checksum stands at bytes 17 to 20 and covers what follows.
            batch._buffer = data[:17] + calc_crc32c(data[21:]).to_bytes(4, "big") + data[21:]
            await (await producer.send_batch(batch, topic, partition=0))
        finally:
            await producer.stop()

    def _append(
        self, topic: str, values: Sequence[bytes | None], partition: int, key: bytes | None, headers: Headers
    ) -> None:
        failures: list[object] = []
        producer = Producer({**self._config, "linger.ms": 0})
        for value in values:
            producer.produce(
                topic,
                value,
                key,
                partition,
                on_delivery=lambda error, _: failures.append(error) if error else None,
                headers=list(headers),
            )
        assert producer.flush(30) == 0
        assert failures == []

    def _transaction(self, topic: str, values: Sequence[bytes], commit: bool) -> None:
        producer = Producer({**self._config, "transactional.id": f"test-{uuid.uuid4().hex[:8]}"})
        producer.init_transactions(30)
        producer.begin_transaction()
        for value in values:
            producer.produce(topic, value, partition=0)
        assert producer.flush(30) == 0  # on the log before the transaction ends: an abort would drop what is queued
        if commit:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
