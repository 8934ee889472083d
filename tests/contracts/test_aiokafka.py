"""The transport on aiokafka keeps the contract on a real broker, and what is special about this client."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType  # type: ignore[import-untyped]
from aiokafka.errors import CorruptRecordException  # type: ignore[import-untyped]
from aiokafka.protocol.group import LeaveGroupRequest  # type: ignore[import-untyped]
from confluent_kafka.admin import AdminClient
from typing_extensions import override

from consumerkit.message import TopicPartition
from consumerkit.transports.aiokafka import records
from consumerkit.transports.base import Record, Transport
from consumerkit.transports.kafka import Kafka
from tests.contracts.kafka_contract import KafkaContract
from tests.contracts.kafka_control import KafkaControl
from tests.contracts.member import Member, offsets, until
from tests.contracts.transport_contract import numbered
from tests.services import KafkaServer

OUTAGE = 8.0
# Longer than an outage: this client's heartbeat waits in the broker's socket and is answered before the session ends.
SESSION = 30.0


class EvictingBench(KafkaControl):
    """Ends sessions by leaving on the members' behalf, as a broker's timer does, but every time."""

    @override
    async def expire(self, group: str) -> None:
        admin = AdminClient(self._config)
        found = await asyncio.wrap_future(admin.describe_consumer_groups([group])[group])
        client = AIOKafkaClient(bootstrap_servers=self._server.bootstrap)
        await client.bootstrap()
        try:
            node = await client.coordinator_lookup(CoordinationType.GROUP, group)
            for member in found.members:
                request = LeaveGroupRequest(group, member.member_id)
                answer = await client.send(node, request, group=ConnectionGroup.COORDINATION)
                assert answer.error_code == 0  # the fault fired
        finally:
            await client.close()


class TestAiokafka(KafkaContract):
    @override
    def transport(self, bootstrap: str, session: float | None = None) -> Transport:
        options = {} if session is None else {"session_timeout_ms": int(session * 1000)}
        return Kafka(bootstrap, transport="aiokafka", options=options).connect()

    @pytest.fixture
    @override
    def private_control(self, private_kafka: KafkaServer) -> KafkaControl:
        transport = self.transport(private_kafka.bootstrap, SESSION)
        return EvictingBench(private_kafka, transport, outage=OUTAGE, session=SESSION)

    @pytest.mark.parametrize("error", [CorruptRecordException("Invalid CRC"), ValueError("zstd: corrupted block")])
    async def test_a_broken_batch_fails_its_partition_after_all_that_is_before_it(
        self, control: KafkaControl, topic: str, group: str, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A broker takes no broken batch and disks break rarely, so the batch breaks when it is taken apart.
        class Breaking(records.ForgivingRecords):
            @override
            def next_batch(self) -> Any:
                batch = super().next_batch()
                if batch is not None and batch.base_offset == 5 and b"broken" in self._data:
                    raise error
                return batch

        monkeypatch.setattr(records, "ForgivingRecords", Breaking)
        await control.append(topic, numbered(5), 0)
        await control.append(topic, [b"broken"], 0)
        await control.append(topic, numbered(5), 0)
        await control.append(topic, numbered(3000), 1)
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await until(lambda: member.listener.failures, "the listener gets the failure")
            await member.reads(3005)
            await control.append(topic, numbered(5), 1)
            await member.reads(3010)
        assert set(member.listener.failures) == {TopicPartition(topic, 0)}
        assert f"{topic}[0] at offset 5" in str(member.listener.failures[TopicPartition(topic, 0)])
        assert offsets(member.seen, 0) == list(range(5))
        assert offsets(member.seen, 1) == list(range(3005))
        assert (await control.committed(group, topic))[TopicPartition(topic, 0)] == 5

    async def test_a_cancelled_fetch_loses_nothing(self, control: KafkaControl, topic: str, group: str) -> None:
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await member.holds(2)
            await member.quiet()
            for at in range(30):
                fetch = asyncio.create_task(member.consumer.fetch(10, 5.0))
                await asyncio.sleep(0.01 * (at % 3))
                await control.append(topic, [b"%d" % at])
                fetch.cancel()
                await asyncio.wait({fetch})
                if not fetch.cancelled():
                    member.seen += fetch.result()
            while len(member.seen) < 30:
                found = await member.consumer.fetch(10, 5.0)
                assert found
                member.seen += found
        assert offsets(member.seen, 0) == list(range(30))

    async def test_a_tombstone_without_a_key_can_be_sent(self, control: KafkaControl, topic: str, group: str) -> None:
        producer = control.transport.producer()
        await producer.start()
        try:
            assert await producer.send([Record(topic, None, None, (("why", b"nothing"),))]) == [None]
        finally:
            await producer.stop()
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            (seen,) = await member.reads(1)
        assert (seen.key, seen.value, seen.headers) == (None, None, (("why", b"nothing"),))

    async def test_a_header_name_that_cannot_be_encoded_fails_its_record_alone(
        self, control: KafkaControl, topic: str
    ) -> None:
        producer = control.transport.producer()
        await producer.start()
        try:
            odd = Record(topic, b"21", b"x", (("\ud800", b""),))
            answers = await producer.send([Record(topic, b"21", b"1"), odd, Record(topic, b"21", b"2")])
        finally:
            await producer.stop()
        assert [answer is None for answer in answers] == [True, False, True]
        assert answers[1] is not None
        assert answers[1].permanent

    async def test_no_payload_is_logged(
        self, control: KafkaControl, topic: str, group: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        producer = control.transport.producer()
        await producer.start()
        try:
            await producer.send([Record(topic, b"key-of-gold", b"value-of-gold")])
        finally:
            await producer.stop()
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await member.reads(1)
        assert "of-gold" not in caplog.text
        assert f"Subscribed to topic(s): {{'{topic}'}}" in caplog.text
