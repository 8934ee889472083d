"""The transport through librdkafka keeps the contract, on a real broker."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import Message as RawMessage
from confluent_kafka import TopicPartition as RawPartition
from typing_extensions import override

from consumerkit.message import Message, TopicPartition
from consumerkit.transports.base import PartitionInfo, Record, Subscription, Transport
from consumerkit.transports.confluent import thread
from consumerkit.transports.confluent.admin import TopicAdmin
from consumerkit.transports.confluent.assignment import Assignment
from consumerkit.transports.confluent.consumer import ConfluentConsumer
from consumerkit.transports.confluent.messages import convert
from consumerkit.transports.confluent.questions import Questions
from consumerkit.transports.confluent.transport import ConfluentTransport
from consumerkit.transports.embedded import EmbeddedBroker
from tests.contracts.control import BrokerControl
from tests.contracts.kafka_contract import KafkaContract
from tests.contracts.kafka_control import KafkaControl
from tests.contracts.member import Member, offsets, until
from tests.contracts.transport_contract import numbered
from tests.services import KafkaServer


class TestConfluent(KafkaContract):
    @override
    def transport(self, bootstrap: str, session: float | None = None) -> Transport:
        return ConfluentTransport(self.config(bootstrap, session))

    def config(self, bootstrap: str, session: float | None = None) -> dict[str, object]:
        """The client's settings; with this session timeout in seconds, where one is given."""
        config: dict[str, object] = {"bootstrap.servers": bootstrap}
        if session is not None:
            config |= {"session.timeout.ms": int(session * 1000), "heartbeat.interval.ms": 500}
        return config

    async def test_after_an_error_in_the_client_nothing_is_skipped(
        self, kafka: KafkaServer, control: BrokerControl, topic: str, group: str
    ) -> None:
        """An exception out of any callback makes the client destroy the messages that the same call dequeued."""
        raised = 0

        def raising(_: str) -> None:
            nonlocal raised
            raised += 1
            raise RuntimeError("out of a callback")

        for partition in (0, 1):
            await control.append(topic, numbered(3_000), partition)
        reach = self.config(kafka.bootstrap)
        faulty = {**reach, "stats_cb": raising, "statistics.interval.ms": 20}
        consumer = ConfluentConsumer(faulty, control.subscription(group, topic), TopicAdmin(reach))
        async with Member(consumer) as member:
            await member.holds(2)
            for number in range(20):
                await control.append(topic, numbered(10, start=3_000 + 10 * number))
            seen = list(await member.reads(6_200))
        assert raised >= 10  # the fault fired
        assert offsets(seen, 0) == list(range(3_200))
        assert offsets(seen, 1) == list(range(3_000))

    async def test_a_position_outside_the_log_is_told_of_however_early_the_client_fetches(
        self, control: BrokerControl, topic: str, group: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The client fetches between an assignment and its pause, gives up on the partition, and refuses to seek."""

        class Slow(Consumer):
            def pause(self, partitions: list[RawPartition]) -> None:
                time.sleep(1)
                super().pause(partitions)

            def resume(self, partitions: list[RawPartition]) -> None:
                time.sleep(1)
                super().resume(partitions)

        await control.append(topic, numbered(10), 0)
        await control.append(topic, numbered(10), 1)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            seen = await member.reads(20)
            for partition in (0, 1):
                member.finish(next(m for m in seen if m.partition == partition and m.offset == 3))
        await control.delete_before(topic, 0, 8)
        monkeypatch.setattr(thread, "Consumer", Slow)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as successor:
            await until(lambda: successor.listener.failures, "the listener gets the failure")
            assert set(successor.listener.failures) == {TopicPartition(topic, 0)}
            assert offsets(await successor.reads(6), 1) == list(range(4, 10))

    async def test_nothing_is_jumped_over_where_the_broker_answers_slowly_at_an_assignment(
        self, private_control: KafkaControl, private_kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client that is to read "at the end" asks where that is, asks again after a pause, and undoes our seek."""
        control, topic, group = private_control, "assigned-in-an-outage", "assigned-in-an-outage"
        at = TopicPartition(topic, 0)
        await control.create(topic, 1)
        await control.append(topic, numbered(10))
        stalls: list[threading.Timer] = []

        class Stalled(Consumer):
            def incremental_assign(self, partitions: list[RawPartition]) -> None:
                if partitions:
                    private_kafka.pause()
                    stalls.append(threading.Timer(1.5, private_kafka.resume))
                    stalls[-1].start()
                super().incremental_assign(partitions)

        async def told(self: Questions, partitions: Collection[TopicPartition]) -> dict[TopicPartition, PartitionInfo]:
            return {one: PartitionInfo("id", 0, 10, 3) for one in partitions}

        monkeypatch.setattr(thread, "Consumer", Stalled)
        monkeypatch.setattr(Questions, "describe", told)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            await member.reads(7)
            await control.append(topic, numbered(10))
            assert offsets(await member.reads(17), 0) == list(range(3, 20))
            assert member.listener.starts == {at: 3}
        assert stalls  # the fault fired

    async def test_an_error_from_before_a_seek_does_not_stop_the_partition(
        self, control: BrokerControl, topic: str, group: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is still in the client's queue when the partition is sent to a position that is in order."""

        class Slow(Consumer):
            def seek(self, partition: RawPartition) -> None:
                super().seek(partition)
                if partition.offset == 500:
                    time.sleep(0.5)

        monkeypatch.setattr(thread, "Consumer", Slow)
        await control.append(topic, numbered(10), 0)
        at = TopicPartition(topic, 0)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            await member.reads(10)
            member.goes_to(at, 500)
            await asyncio.sleep(0.3)
            member.goes_to(at, 3)
            assert offsets((await member.reads(17))[10:], 0) == list(range(3, 10))
            assert member.listener.failures == {}
            member.goes_to(at, 500)
            await until(lambda: at in member.listener.failures, "the listener gets a failure that is one")

    async def test_a_partition_that_fails_while_it_is_held_is_read_again_after_release_and_seek(
        self, control: BrokerControl, topic: str, group: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Slow(Consumer):
            def resume(self, partitions: list[RawPartition]) -> None:
                super().resume(partitions)
                time.sleep(3.0)

        await control.append(topic, numbered(10), 0)
        at = TopicPartition(topic, 0)
        monkeypatch.setattr(thread, "Consumer", Slow)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            await member.reads(10)
            await member.consumer.hold([at])
            await asyncio.sleep(0.3)
            await control.append(topic, numbered(10), 0)
            await control.delete_before(topic, 0, 15)
            await member.consumer.release([at])
            await asyncio.sleep(1.5)  # the client finds that its position is gone, and is asked for nothing yet
            await member.consumer.hold([at])
            await until(lambda: at in member.listener.failures, "the listener gets the failure")
            await member.consumer.release([at])
            member.goes_to(at, 15)
            assert offsets((await member.reads(15))[10:], 0) == list(range(15, 20))

    async def test_partitions_that_could_not_be_taken_on_are_asked_for_again(
        self, control: BrokerControl, topic: str, group: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failures = 0
        assign = Assignment._assign

        def failing_once(assignment: Assignment, consumer: Consumer, partitions: list[RawPartition]) -> None:
            nonlocal failures
            failures += 1
            if failures == 1:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            assign(assignment, consumer, partitions)

        monkeypatch.setattr(Assignment, "_assign", failing_once)
        await control.append(topic, numbered(10))
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            assert offsets(await member.reads(10), 0) == list(range(10))
            assert member.consumer.health().error is None
        assert failures >= 2  # the fault fired

    async def test_a_broken_batch_fails_its_partition_after_all_that_is_before_it(
        self, control: BrokerControl, topic: str, group: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A broker takes no broken batch and disks break rarely, so the client's report is put among what it returned;
        # like the client, which reports a broken batch and goes on behind it.
        reported = 0

        def with_a_broken_batch(raw: Iterable[RawMessage], readings: Any) -> Any:
            nonlocal reported
            found: list[RawMessage] = []
            for item in raw:
                if item.value() == b"broken":
                    reported += 1
                    error = KafkaError(KafkaError._BAD_MSG, "CRC mismatch")
                    item = RawMessage(topic=topic, partition=0, offset=item.offset(), error=error)
                found.append(item)
            return convert(found, readings)

        monkeypatch.setattr(thread, "convert", with_a_broken_batch)
        await control.append(topic, [*numbered(5), b"broken", *numbered(5)], 0)
        await control.append(topic, numbered(10), 1)
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await until(lambda: member.listener.failures, "the listener gets the failure")
            await member.reads(15)
            await control.append(topic, numbered(3), 0)
            await control.append(topic, numbered(3), 1)
            await member.reads(18)
            await asyncio.sleep(0.5)
        assert reported == 1  # the fault fired
        assert set(member.listener.failures) == {(topic, 0)}
        assert offsets(member.seen, 0) == list(range(5))
        assert offsets(member.seen, 1) == list(range(13))
        assert (await control.committed(group, topic))[TopicPartition(topic, 0)] == 5

    async def test_a_cancelled_fetch_loses_nothing(self, control: BrokerControl, topic: str, group: str) -> None:
        """No caller may cancel a fetch; if one does, the messages come with the next."""
        await control.append(topic, numbered(10))
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await member.reads(10)
            await member.quiet()
            fetch = asyncio.create_task(member.consumer.fetch(100, 10.0))
            await asyncio.sleep(0.2)
            fetch.cancel()
            await control.append(topic, numbered(10))
            await asyncio.sleep(0.5)
            found: list[Message] = []
            while len(found) < 10:
                found += await member.consumer.fetch(100, 5.0)
            assert offsets(found, 0) == list(range(10, 20))

    async def test_text_that_cannot_be_encoded_fails_its_record_alone(self, control: BrokerControl, topic: str) -> None:
        """The client does not check, and such a header's name ends the process."""
        producer = control.transport.producer()
        await producer.start()
        odd = [Record(topic, b"21", b"x", (("\ud800", b""),)), Record("\ud800", b"21", b"x")]
        try:
            answers = await producer.send([Record(topic, b"21", b"1"), *odd, Record(topic, b"21", b"2")])
        finally:
            await producer.stop()
        assert [answer is None for answer in answers] == [True, False, False, True]
        assert all(answer.permanent for answer in answers if answer is not None)


class TestEmbedded:
    """The embedded broker of the demonstration serves this transport."""

    @pytest.fixture(scope="class")
    @classmethod
    def broker(cls) -> Iterator[EmbeddedBroker]:
        with EmbeddedBroker("made-at-start") as broker:
            yield broker

    async def test_messages_pass_through_and_are_committed(self, broker: EmbeddedBroker) -> None:
        transport = ConfluentTransport({"bootstrap.servers": broker.bootstrap})
        producer = transport.producer()
        await producer.start()
        answers = await producer.send([Record("made-at-start", b"%d" % at, b"x") for at in range(100)])
        await producer.stop()
        assert answers == [None] * 100
        subscription = Subscription(group="embedded", topics=("made-at-start",))
        async with Member(transport.consumer(subscription)) as member:
            seen = list(await member.reads(100))
            await member.commit()
        assert {message.topic_id for message in seen} == {"made-at-start"}

    async def test_topics_are_described_without_being_created(self, broker: EmbeddedBroker) -> None:
        transport = ConfluentTransport({"bootstrap.servers": broker.bootstrap})
        assert set(await transport.topics(["made-at-start", "missing"])) == {"made-at-start"}
        assert await transport.topics(["missing"]) == {}
        await transport.create_topics({"made-later": 4})
        assert (await transport.topics(["made-later"]))["made-later"].partitions == 4
