"""The part of the contract that only a real log can test; both Kafka transports inherit it."""

from __future__ import annotations

import asyncio
import math
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from uuid import uuid4

import pytest
from typing_extensions import override

from consumerkit.errors import StartError, Unavailable
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Position, Record, Subscription, Transport
from tests.contracts.kafka_control import KafkaControl
from tests.contracts.member import Member, Recorder, offsets, until
from tests.contracts.reader_contract import read_out, started
from tests.contracts.rebalance_contract import RebalanceContract
from tests.contracts.transport_contract import numbered
from tests.services import KafkaServer
from tests.services.tcp_proxy import TcpProxy

NOBODY = "127.0.0.1:1"
SESSION = 4.0


class KafkaContract(RebalanceContract):
    """Inherit it and give `transport`.

    Attributes:
        start_timeout: Seconds after which `start` and `topics` may give an unreachable broker up, at most.
    """

    start_timeout = 60.0

    @abstractmethod
    def transport(self, bootstrap: str, session: float | None = None) -> Transport:
        """The transport under test; with this session timeout in seconds, where one is given."""

    @pytest.fixture
    @override
    def control(self, kafka: KafkaServer) -> KafkaControl:
        return KafkaControl(kafka, self.transport(kafka.bootstrap))

    @pytest.fixture(scope="class")
    @classmethod
    def private_kafka(cls) -> Iterator[KafkaServer]:
        """A broker that this class may stop."""
        with KafkaServer.start_private() as server:
            yield server

    @pytest.fixture
    @override
    def private_control(self, private_kafka: KafkaServer) -> KafkaControl:
        transport = self.transport(private_kafka.bootstrap, SESSION)
        return KafkaControl(private_kafka, transport, outage=8.0, session=SESSION)

    async def test_only_committed_records_are_read_and_gaps_are_no_matter(
        self, control: KafkaControl, topic: str, group: str
    ) -> None:
        await control.append(topic, [b"plain"])
        await control.transaction(topic, [b"aborted-1", b"aborted-2"], commit=False)
        await control.transaction(topic, [b"committed"], commit=True)
        await control.append(topic, [b"last"])
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            seen = await member.reads(3)
            await asyncio.sleep(0.5)
        assert [message.value for message in seen] == [b"plain", b"committed", b"last"]
        # 1 and 2 were aborted. Where the markers lie that end the transactions is the broker's affair: it answers
        # before it writes them, and a producer not answered in time, on a busy machine, ends a transaction twice.
        plain, committed, last = offsets(seen, 0)
        assert (plain, committed >= 3, last > committed) == (0, True, True)

    async def test_what_holds_no_message_at_the_end_of_a_log_is_passed_over(
        self, control: KafkaControl, topic: str, group: str
    ) -> None:
        at = TopicPartition(topic, 0)
        await control.transaction(topic, [b"0", b"1", b"2"], commit=True)  # and a marker at 3
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            await member.reads(3)
            first = member.listener.held[at]
            await until(lambda: member.passed.get(at) == Position(4, first), "the marker is passed")
            # A seek makes it void, and the same log is passed over under the new epoch.
            epoch = member.goes_to(at, 1)
            await until(lambda: member.passed.get(at) == Position(4, epoch), "the marker is passed again")
            assert offsets(member.seen, 0) == [0, 1, 2, 1, 2]
            await control.transaction(topic, [b"aborted"] * 3, commit=False)  # 4 to 6, and a marker at 7
            await until(lambda: member.passed.get(at) == Position(8, epoch), "what was aborted is passed")
            epoch = member.goes_to(at, 7)
            await until(lambda: member.passed.get(at) == Position(8, epoch), "a marker alone is passed")
            await control.append(topic, [b"8"])
            assert offsets(await member.reads(6), 0)[-1] == 8
            async with control.open_transaction(topic, [b"open"], 0):
                await asyncio.sleep(1.0)
                assert all(position.offset <= 9 for position in member.passed.values())

    async def test_nothing_that_was_not_returned_is_passed_over(
        self, control: KafkaControl, topic: str, group: str
    ) -> None:
        at = TopicPartition(topic, 0)
        for _ in range(20):
            await control.transaction(topic, [b"x"] * 20, commit=True)
        there: list[int] = []  # a busy machine may have more than one marker end a transaction
        async with started(control.transport.reader(topic)) as reader:
            while len(there) < 400:
                there += offsets(await reader.fetch(500, 5.0), 0)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            await member.holds(2)
            await member.quiet()
            before = offsets(member.seen, 0)
            count, next_ = len(before), (before[-1] + 1 if before else 0)
            while count < 400:
                for message in await member.consumer.fetch(7, 5.0):
                    if message.partition == 0:
                        assert message.offset >= next_, "what was passed over is returned"
                        count, next_ = count + 1, message.offset + 1
                if (passed := member.consumer.passed().get(at)) is not None:
                    next_ = max(next_, passed.offset)
                    assert count == 400 or next_ <= there[count], "a message that was not returned is passed over"

    async def test_a_reader_ends_behind_aborted_records_and_before_those_of_an_open_transaction(
        self, control: KafkaControl, log: str
    ) -> None:
        await control.append(log, [b"plain"], 0)
        await control.transaction(log, [b"aborted"] * 3, commit=False)
        await control.append(log, [b"plain"], 1)
        async with control.open_transaction(log, [b"open"], 1), started(control.transport.reader(log)) as reader:
            seen = await read_out(reader)
        assert sorted((message.partition, message.offset) for message in seen) == [(0, 0), (1, 0)]

    async def test_a_header_name_that_is_not_utf8_is_escaped(
        self, control: KafkaControl, topic: str, group: str
    ) -> None:
        await control.append(topic, [b"before"])
        await control.append_with_headers(topic, [(b"good-one", b"1"), (b"bad\xff-one", b"2"), (b"good-two", b"3")])
        await control.append_with_headers(topic, [(b"bad\xfe-one", b"1"), (b"bad\xff-two", b"2")])
        await control.append(topic, [b"after"])
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            before, one, two, after = await member.reads(4)
        assert (before.value, one.value, two.value, after.value) == (b"before", b"odd", b"odd", b"after")
        assert one.headers == (("good-one", b"1"), ("bad\\xff-one", b"2"), ("good-two", b"3"))
        assert one.header("good-two") == b"3"
        # Not every client keeps the bytes of more than one such name; all keep values and order.
        assert [value for _, value in two.headers] == [b"1", b"2"]
        assert two.headers[0][0] == "bad\\xfe-one"

    async def test_a_topic_id_is_kafkas_own(self, control: KafkaControl, topic: str) -> None:
        """Both transports must give the same, or switching between them would change message IDs."""
        info = (await control.transport.topics([topic]))[topic]
        assert info.topic_id == await control.topic_id(topic)
        assert len(info.topic_id) == 22

    @pytest.mark.parametrize(
        "settings, seconds",
        [
            ({"retention.ms": "3600000"}, 3600.0),
            ({"retention.ms": "-1"}, math.inf),
            ({"cleanup.policy": "compact", "retention.ms": "3600000"}, math.inf),
            ({"cleanup.policy": "compact,delete", "retention.ms": "3600000"}, 3600.0),
        ],
    )
    async def test_how_long_records_are_kept_is_the_topics_own_setting(
        self, control: KafkaControl, settings: dict[str, str], seconds: float
    ) -> None:
        name = f"kept-{uuid4().hex[:8]}"
        await control.create(name, 1, settings)
        assert await control.transport.keeps([name]) == {name: seconds}

    async def test_a_recreated_topic_has_another_id(self, control: KafkaControl, topic: str) -> None:
        before = (await control.transport.topics([topic]))[topic]
        await control.delete(topic)
        await control.create(topic, 2)
        after = (await control.transport.topics([topic]))[topic]
        assert before.topic_id != after.topic_id

    async def test_after_a_seek_messages_carry_the_id_of_a_topic_made_anew(
        self, control: KafkaControl, topic: str, group: str
    ) -> None:
        partition = TopicPartition(topic, 0)
        await control.append(topic, numbered(3))
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            await member.holds(2)
            old = {message.topic_id for message in await member.reads(3)}
            # No fetch may find the topic missing: the client would start a rebalance.
            both = list(member.listener.held)
            await member.consumer.hold(both)
            await asyncio.sleep(1.5)
            await control.delete(topic)
            await control.create(topic, 2)
            await control.append(topic, numbered(5))
            new = await control.topic_id(topic)
            assert (await member.consumer.describe([partition]))[partition].topic_id == new
            epoch = member.goes_to(partition, 0)
            await member.consumer.release(both)
            seen = (await member.reads(8))[3:]
        assert [(message.offset, message.epoch) for message in seen] == [(offset, epoch) for offset in range(5)]
        assert old != {new}
        assert {message.topic_id for message in seen} == {new}

    async def test_an_id_that_the_broker_did_not_tell_is_not_described(
        self, kafka: KafkaServer, control: KafkaControl, topic: str, group: str
    ) -> None:
        partition = TopicPartition(topic, 0)
        async with TcpProxy(kafka.bootstrap) as line:
            transport = self.transport(line.address)
            async with Member(transport.consumer(control.subscription(group, topic))) as member:
                await member.holds(2)
                # The consumer has its own connections to the broker; a question about topics makes a new one.
                await line.cut()
                with pytest.raises(Unavailable):
                    await member.consumer.describe([partition])
                await control.append(topic, numbered(3))
                await member.reads(3)
                await line.mend()
                assert (await member.consumer.describe([partition]))[partition].topic_id == await control.topic_id(
                    topic
                )

    async def test_a_partition_is_handed_out_once_the_broker_has_told_its_topics_id(
        self, kafka: KafkaServer, control: KafkaControl, topic: str, group: str
    ) -> None:
        leaving, go = asyncio.Event(), asyncio.Event()

        async def leave() -> None:
            leaving.set()
            await go.wait()

        async with (
            TcpProxy(kafka.bootstrap) as line,
            # It finishes nothing: what it may yet read of the new topic is not committed, and comes to the second one.
            Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as first,
        ):
            await first.holds(2)
            first.listener.before_leaving = leave
            transport = self.transport(line.address)
            async with Member(transport.consumer(control.subscription(group, topic))) as second:
                await asyncio.wait_for(leaving.wait(), 120)
                await line.cut()
                await control.delete(topic)
                await control.create(topic, 2)
                for number in (0, 1):
                    await control.append(topic, numbered(5), number)
                go.set()
                await first.stop()
                # Longer than any of the clients asks at a time.
                await asyncio.sleep(17)
                assert (second.listener.told, second.seen) == ([], [])
                assert second.consumer.health().error is None
                assert second.consumer.health().idle < 5.0
                await line.mend()
                # A question under way ends first, and then each client waits before it connects again.
                seen = await second.reads(10)
        assert {message.topic_id for message in seen} == {await control.topic_id(topic)}
        assert offsets(seen, 0) == offsets(seen, 1) == list(range(5))

    async def test_a_large_backlog_comes_complete(self, control: KafkaControl, topic: str, group: str) -> None:
        for partition in (0, 1):
            await control.append(topic, numbered(20_000), partition)
        async with Member(control.transport.consumer(control.subscription(group, topic, fetch_bytes=65_536))) as member:
            seen = list(await member.reads(40_000))
        assert offsets(seen, 0) == offsets(seen, 1) == list(range(20_000))

    async def test_pausing_and_resuming_loses_and_repeats_nothing(
        self, control: KafkaControl, topic: str, group: str
    ) -> None:
        for partition in (0, 1):
            await control.append(topic, numbered(5_000), partition)
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await member.reads(1)
            for _ in range(10):
                await member.consumer.pause()
                await asyncio.sleep(0.05)
                await member.consumer.resume()
                await asyncio.sleep(0.05)
            seen = list(await member.reads(10_000))
        assert offsets(seen, 0) == offsets(seen, 1) == list(range(5_000))

    async def test_a_broker_that_is_not_there_refuses_to_start(self, group: str) -> None:
        transport = self.transport(NOBODY)
        began = time.monotonic()
        consumer = transport.consumer(Subscription(group=group, topics=("any",)))
        tries = (consumer.start(Recorder()), transport.topics(["any"]), transport.create_topics({"any": 1}))
        errors = await asyncio.gather(*tries, return_exceptions=True)
        assert [type(error) for error in errors] == [StartError] * 3
        assert time.monotonic() - began < self.start_timeout

    async def test_a_stalled_broker_fails_no_record_that_it_takes_later(self, private_control: KafkaControl) -> None:
        control, topic = private_control, "sent-during-an-outage"
        await control.create(topic, 1)
        producer = control.transport.producer()
        await producer.start()
        try:
            assert await producer.send([Record(topic, None, b"0")]) == [None]
            async with control.outage():
                sending = asyncio.create_task(producer.send([Record(topic, None, b"%d" % at) for at in range(1, 50)]))
                await asyncio.sleep(1.0)
                assert not sending.done()  # the fault fired
            assert await sending == [None] * 49
        finally:
            await producer.stop()
        await self._until_described(control, topic)
        async with Member(control.transport.consumer(control.subscription("outage", topic))) as member:
            seen = list(await member.reads(50))
            await asyncio.sleep(0.5)
        assert [int(message.value or b"") for message in seen] == list(range(50))  # idempotent: nothing twice

    async def test_a_stop_that_is_waited_for_no_longer_leaves_all_the_same(
        self, control: KafkaControl, topic: str, group: str
    ) -> None:
        """Otherwise a client that is no longer stopped would keep its partitions while its process lives."""
        first = Member(control.transport.consumer(control.subscription(group, topic)))
        async with first:
            await first.holds(2)
            await first.quiet()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await first.consumer.stop()
            async with Member(control.transport.consumer(control.subscription(group, topic))) as second:
                await second.holds(2)
        assert first.listener.calls("revoked")

    async def test_a_stop_leaves_a_group_that_waits_for_a_member_that_has_died(
        self, control: KafkaControl, topic: str, group: str
    ) -> None:
        """The broker answers no member while the group waits, which may take as long as the dead one's session."""
        async with Member(control.transport.consumer(control.subscription(group, topic))) as first:
            await first.holds(2)
            async with control.dead_member(group) as dead:
                await first.holds(1)
                async with Member(control.transport.consumer(control.subscription(group, topic))) as second:
                    await until(second.consumer.member, "the second one to ask to be let in")

                    await first.stop()
                    await second.stop()

                    assert await control.members(group) == {dead}

    @staticmethod
    async def _until_described(control: KafkaControl, topic: str) -> None:
        """Wait until a broker that was frozen works again: a client that starts before that gets an error."""
        while True:
            with suppress(StartError, Unavailable):
                if await control.transport.topics([topic]):
                    return
            await asyncio.sleep(0.2)

    async def test_many_records_that_are_too_large_only_together_all_go(self, control: KafkaControl) -> None:
        """A client sends what waits as one batch, and the topic's limit is for a batch."""
        topic = f"small-{uuid4().hex[:8]}"
        control._server.create_topic(topic, 1, {"max.message.bytes": "3000"})
        producer = control.transport.producer()
        await producer.start()
        try:
            records = [Record(topic, b"k%d" % n, b"v" * (4000 if n == 7 else 500)) for n in range(20)]
            answers = await producer.send(records)
        finally:
            await producer.stop()
        (large,) = [answer for answer in answers if answer is not None]
        assert answers[7] == large
        assert "TOO_LARGE" in large.code

    async def test_a_topic_that_is_not_there_holds_up_no_other(self, control: KafkaControl, topic: str) -> None:
        """One of the clients waits some seconds for it to appear."""
        producer = control.transport.producer()
        await producer.start()
        try:
            waiting = asyncio.create_task(producer.send([Record(f"missing-{uuid4().hex[:8]}", None, b"0")]))
            began = time.monotonic()
            for n in range(10):
                assert await producer.send([Record(topic, None, b"%d" % n)]) == [None]
            assert time.monotonic() - began < 30.0  # what is not there is waited for much longer
            (answer,) = await waiting
            assert answer is not None
            assert await producer.send([Record(topic, None, b"last")]) == [None]
        finally:
            await producer.stop()
