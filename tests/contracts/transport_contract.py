"""The contract of `consumerkit.transports.base`, sentence by sentence; every transport inherits it."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from uuid import uuid4

import pytest

from consumerkit.errors import StartError, Unavailable
from consumerkit.message import Message, TopicPartition
from consumerkit.transports.base import Acknowledged, PartitionInfo, Position, Record, SendFailure, Span, Surveyed
from tests.contracts.control import BrokerControl
from tests.contracts.member import Member, Recorder, offsets, until
from tests.contracts.reader_contract import ReaderContract


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


class TransportContract(ReaderContract):
    """Inherit it, give `control`, and set what the transport cannot do.

    Attributes:
        tells_lost: Whether the client can tell partitions that are lost from partitions that are revoked. Where it
            cannot, `revoked` is called instead, and what it returns must not be committed.
    """

    tells_lost = True

    @pytest.fixture
    @abstractmethod
    def private_control(self) -> BrokerControl:
        """A broker that a test may stop; it may be the same."""

    @pytest.fixture
    async def topic(self, control: BrokerControl) -> str:
        """A topic of two partitions."""
        name = f"topic-{uuid4().hex[:8]}"
        await control.create(name, 2)
        return name

    @pytest.fixture
    def group(self) -> str:
        return f"group-{uuid4().hex[:8]}"

    # -- fetching

    async def test_messages_come_in_offset_order_and_whole(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        await control.append(topic, numbered(300), 0, key=b"k")
        await control.append(topic, numbered(200), 1, headers=(("a", b"1"), ("b", b"\xff\x00")))
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            seen = await member.reads(500)
            assert len(seen) == 500
        assert offsets(seen, 0) == list(range(300))
        assert offsets(seen, 1) == list(range(200))
        info = (await control.transport.topics([topic]))[topic]
        now = time.time() * 1000
        for message in seen:
            assert message.topic == topic
            assert message.value == b"%d" % message.offset
            assert message.topic_id == info.topic_id
            assert now - 600_000 < message.timestamp < now + 60_000
            assert (message.key, message.headers) == (
                (b"k", ()) if message.partition == 0 else (None, (("a", b"1"), ("b", b"\xff\x00")))
            )

    async def test_odd_records_come_as_they_are(self, control: BrokerControl, topic: str, group: str) -> None:
        headers = (("n", None), ("d", b"1"), ("d", b""), ("d", b"2"), ("", b"empty name"), ("schlüssel", b"x"))
        await control.append(topic, [None, b"", b"x"], headers=headers)
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            seen = await member.reads(3)
        assert [message.value for message in seen] == [None, b"", b"x"]
        assert [message.key for message in seen] == [None, None, None]
        assert [message.headers for message in seen] == [headers] * 3

    async def test_fetch_keeps_to_limit_and_timeout(self, control: BrokerControl, topic: str, group: str) -> None:
        await control.append(topic, numbered(50))
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await member.reads(50)
            await member.quiet()
            await control.append(topic, numbered(50))
            counts: list[int] = []
            while sum(counts) < 50:
                counts.append(len(await member.consumer.fetch(7, 120.0)))
            assert max(counts) == 7
            assert min(counts) >= 1
            began = time.monotonic()
            assert await member.consumer.fetch(7, 1.0) == []
            assert time.monotonic() - began > 0.9

    async def test_fetch_does_not_linger_for_more(self, control: BrokerControl, topic: str, group: str) -> None:
        await control.append(topic, numbered(1))
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await member.reads(1)
            await member.quiet()
            fetch = asyncio.create_task(member.consumer.fetch(100, 3600.0))
            await asyncio.sleep(0.3)
            assert not fetch.done()
            await control.append(topic, numbered(3))
            assert len(await asyncio.wait_for(fetch, 120)) >= 1

    async def test_a_consumer_that_is_not_fetched_from_stays_and_loses_nothing(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await member.holds(2)
            await member.quiet()
            await control.append(topic, numbered(100))
            await asyncio.sleep(3.0)
            assert len(member.listener.held) == 2
            seen: list[Message] = []
            while len(seen) < 100:
                found = await member.consumer.fetch(33, 120.0)
                assert found
                seen += found
            assert offsets(seen, 0) == list(range(100))

    # -- positions

    async def test_only_what_is_given_is_committed(self, control: BrokerControl, topic: str, group: str) -> None:
        await control.append(topic, numbered(10))
        consumer = control.transport.consumer(control.subscription(group, topic))
        async with Member(consumer, finishes=False) as member:
            seen = await member.reads(10)
            await asyncio.sleep(0.5)
            assert await control.committed(group, topic) == {}
            await consumer.commit({TopicPartition(topic, 0): Position(4, seen[0].epoch)})
            assert await control.committed(group, topic) == {TopicPartition(topic, 0): 4}
        assert await control.committed(group, topic) == {TopicPartition(topic, 0): 4}
        async with Member(control.transport.consumer(control.subscription(group, topic))) as successor:
            assert offsets(await successor.reads(6), 0) == [4, 5, 6, 7, 8, 9]

    async def test_stop_commits_what_the_listener_returns(self, control: BrokerControl, topic: str, group: str) -> None:
        await control.append(topic, numbered(10))
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await member.reads(10)
        assert [call.kind for call in member.listener.told][-1] == "revoked"
        assert member.listener.held == {}
        assert (await control.committed(group, topic))[TopicPartition(topic, 0)] == 10

    async def test_positions_of_an_epoch_that_is_over_are_dropped(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        await control.append(topic, numbered(10))
        consumer = control.transport.consumer(control.subscription(group, topic))
        async with Member(consumer, finishes=False) as member:
            await member.reads(10)
            first = TopicPartition(topic, 0)
            epoch = member.listener.held[first]
            await consumer.commit({first: Position(3, epoch)})
            await consumer.commit({first: Position(7, epoch - 1), TopicPartition(topic, 7): Position(1, epoch)})
            assert await control.committed(group, topic) == {first: 3}

    @pytest.mark.parametrize("start_from, expected", [("earliest", list(range(8))), ("latest", [5, 6, 7])])
    async def test_a_new_group_starts_where_it_is_told(
        self, control: BrokerControl, topic: str, group: str, start_from: str, expected: list[int]
    ) -> None:
        await control.append(topic, numbered(5))
        subscription = control.subscription(group, topic, start_from=start_from)
        async with Member(control.transport.consumer(subscription), finishes=False) as member:
            await member.holds(2)
            await asyncio.sleep(0.5)
            await control.append(topic, numbered(3))
            assert offsets(await member.reads(len(expected)), 0) == expected

    async def test_a_committed_offset_comes_before_the_first_run_policy(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        await control.append(topic, numbered(5))
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            member.finish((await member.reads(5))[1])
        subscription = control.subscription(group, topic, start_from="latest")
        async with Member(control.transport.consumer(subscription)) as successor:
            assert offsets(await successor.reads(3), 0) == [2, 3, 4]

    async def test_a_position_outside_the_log_fails_its_partition_alone(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        await control.append(topic, numbered(10), 0)
        await control.append(topic, numbered(10), 1)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            seen = await member.reads(20)
            for partition in (0, 1):
                member.finish(next(m for m in seen if m.partition == partition and m.offset == 3))
        await control.delete_before(topic, 0, 8)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as successor:
            await until(lambda: successor.listener.failures, "the listener gets the failure")
            assert set(successor.listener.failures) == {TopicPartition(topic, 0)}
            assert TopicPartition(topic, 0) in successor.listener.held
            await successor.reads(6)
            await control.append(topic, numbered(2), 1)
            await control.append(topic, numbered(2), 0)
            await successor.reads(8)
            await asyncio.sleep(0.5)
            assert offsets(successor.seen, 1) == list(range(4, 12))
            assert offsets(successor.seen, 0) == []
            assert successor.consumer.health().error is None
        assert (await control.committed(group, topic))[TopicPartition(topic, 0)] == 4

    # -- starting and health

    async def test_seek_reads_from_elsewhere_under_a_new_epoch(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        await control.append(topic, numbered(50), 0)
        await control.append(topic, numbered(10), 1)
        at = TopicPartition(topic, 0)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            seen = await member.reads(60)
            old = seen[0].epoch
            for offset in (20, 7):
                count = len(member.seen)
                epoch = member.goes_to(at, offset)
                await control.append(topic, numbered(1), 0)
                again = (await member.reads(count + 1))[count:]
                assert (again[0].offset, again[0].epoch) == (offset, epoch)
                assert epoch > old
            await until(lambda: member.seen[-1].offset == 51, "the end")
            assert offsets(member.seen[-45:], 0) == list(range(7, 52))
            assert offsets(member.seen, 1) == list(range(10))
            # What was fetched before cannot be committed any more.
            await member.consumer.commit({at: Position(50, old)})
            assert at not in await control.committed(group, topic)

    async def test_a_held_partition_goes_elsewhere_and_stays_held(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        await control.append(topic, numbered(30), 0)
        at = TopicPartition(topic, 0)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            await member.reads(30)
            await member.consumer.hold([at])
            await asyncio.sleep(0.3)
            member.goes_to(at, 12)
            await asyncio.sleep(1.0)
            assert len(member.seen) == 30
            await member.consumer.release([at])
            assert offsets((await member.reads(48))[30:], 0) == list(range(12, 30))

    async def test_a_failed_partition_is_read_again_after_a_seek(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        await control.append(topic, numbered(10), 0)
        at = TopicPartition(topic, 0)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            await member.reads(10)
            member.goes_to(at, 500)
            await until(lambda: at in member.listener.failures, "a failure")
            member.goes_to(at, 4)
            assert offsets((await member.reads(16))[10:], 0) == [4, 5, 6, 7, 8, 9]

    async def test_a_hold_of_a_failed_partition_counts_once_it_is_read_again(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        await control.append(topic, numbered(10), 0)
        at = TopicPartition(topic, 0)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            await member.reads(10)
            member.goes_to(at, 500)
            await until(lambda: at in member.listener.failures, "a failure")
            await member.consumer.hold([at])
            member.goes_to(at, 4)
            await asyncio.sleep(1.0)
            assert len(member.seen) == 10
            await member.consumer.release([at])
            assert offsets((await member.reads(16))[10:], 0) == [4, 5, 6, 7, 8, 9]

    async def test_describe_tells_of_log_and_commit(self, control: BrokerControl, topic: str, group: str) -> None:
        await control.append(topic, numbered(10), 0)
        at, empty = TopicPartition(topic, 0), TopicPartition(topic, 1)
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            seen = await member.reads(10)
            await member.consumer.commit({at: Position(6, seen[0].epoch, "kept with it")})
            await control.delete_before(topic, 0, 3)
            found = await member.consumer.describe([at, empty, TopicPartition(topic, 7)])
            topic_id = (await control.transport.topics([topic]))[topic].topic_id
            assert found == {
                at: PartitionInfo(topic_id, 3, 10, 6, "kept with it"),
                empty: PartitionInfo(topic_id, 0, 0, None, ""),
            }

    async def test_a_survey_tells_of_all_partitions_whoever_has_them(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        await control.append(topic, numbered(10), 0)
        await control.append(topic, numbered(4), 1)
        consumers = [control.transport.consumer(control.subscription(group, topic)) for _ in range(2)]
        async with Member(consumers[0], finishes=False) as one, Member(consumers[1], finishes=False) as other:
            await until(lambda: len(one.listener.held) == len(other.listener.held) == 1, "one partition each")
            have = one if TopicPartition(topic, 0) in one.listener.held else other
            at = TopicPartition(topic, 0)
            await have.consumer.commit({at: Position(6, have.listener.held[at], "kept with it")})
            await control.delete_before(topic, 0, 3)
            topic_id = (await control.transport.topics([topic]))[topic].topic_id
            for member in (one, other):
                found = await member.consumer.survey(topic)
                assert found.topic_id == topic_id
                assert dict(found.partitions) == {
                    0: Surveyed(Span(3, 10), 6, "kept with it"),
                    1: Surveyed(Span(0, 4), None, ""),
                }
            with pytest.raises(Unavailable):
                await one.consumer.survey(f"missing-{topic}")

    async def test_a_partition_tells_its_first_offset_since_a_moment(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        await control.append(topic, numbered(5))
        at = TopicPartition(topic, 0)
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            seen = await member.reads(5)
            await asyncio.sleep(0.05)
            between = max(message.timestamp for message in seen) + 20
            assert await member.consumer.since(at, between) == 5
            await control.append(topic, numbered(5))
            assert await member.consumer.since(at, between) == 5
            assert await member.consumer.since(at, 0) == 0
            assert await member.consumer.since(at, (int(time.time()) + 3600) * 1000) == 10

    async def test_an_unknown_topic_refuses_to_start(self, control: BrokerControl, group: str) -> None:
        name = f"missing-{uuid4().hex[:8]}"
        consumer = control.transport.consumer(control.subscription(group, name))
        with pytest.raises(StartError, match=name):
            await consumer.start(Recorder())
        assert name not in await control.topics()

    async def test_health_is_near_zero_in_a_healthy_consumer(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await member.holds(2)
            await member.consumer.pause()
            await asyncio.sleep(2.5)
            health = await asyncio.to_thread(member.consumer.health)
            assert health.idle < 2.0
            assert health.error is None

    # -- topics

    async def test_describing_topics_never_creates_one(self, control: BrokerControl, topic: str) -> None:
        missing = f"missing-{uuid4().hex[:8]}"
        found = await control.transport.topics([topic, missing])
        assert set(found) == {topic}
        assert (found[topic].name, found[topic].partitions) == (topic, 2)
        assert found[topic].topic_id
        assert missing not in await control.topics()

    async def test_how_long_records_are_kept_is_told_where_it_is_known(
        self, control: BrokerControl, topic: str
    ) -> None:
        found = await control.transport.keeps([topic, f"missing-{uuid4().hex[:8]}"])
        assert set(found) == {topic}
        assert found[topic] > 0
        assert await control.transport.keeps([]) == {}

    async def test_creating_topics_leaves_existing_ones_alone(self, control: BrokerControl, topic: str) -> None:
        fresh = f"fresh-{uuid4().hex[:8]}"
        before = (await control.transport.topics([topic]))[topic]
        await control.transport.create_topics({topic: 9, fresh: 3})
        await control.transport.create_topics({topic: 9, fresh: 3})
        found = await control.transport.topics([topic, fresh])
        assert found[topic] == before
        assert found[fresh].partitions == 3

    # -- sending

    async def test_send_answers_each_record_in_order(self, control: BrokerControl, topic: str, group: str) -> None:
        missing = f"missing-{uuid4().hex[:8]}"
        producer = control.transport.producer()
        await producer.start()
        try:
            answers = await producer.send(
                [
                    Record(topic, b"21", b"first", (("d", b"1"), ("d", None))),
                    Record(missing, None, b"nowhere"),
                    Record(topic, b"21", None),
                    Record(topic, b"21", b"x" * 3_000_000),
                    Record(topic, b"21", b"last"),
                ]
            )
            assert await producer.send([]) == []
        finally:
            await producer.stop()
        assert [answer is None for answer in answers] == [True, False, True, False, True]
        refused, large = answers[1], answers[3]
        assert refused is not None
        assert refused.permanent
        assert "UNKNOWN_TOPIC" in refused.code
        assert large is not None
        assert large.permanent
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            seen = await member.reads(3)
        # murmur2("21") is even when its sign bit is cleared, as in Java's own producer
        assert [(m.partition, m.offset, m.value) for m in seen] == [(0, 0, b"first"), (0, 1, None), (0, 2, b"last")]
        assert seen[0].headers == (("d", b"1"), ("d", None))
        assert missing not in await control.topics()

    async def test_place_tells_where_each_record_went(self, control: BrokerControl, topic: str) -> None:
        await control.append(topic, numbered(3), 1)
        producer = control.transport.producer()
        await producer.start()
        try:
            # A partition that is named stands above the key's, which is 0; a tombstone without a key goes there, too.
            answers = await producer.place(
                [
                    Record(topic, b"21", b"by the key"),
                    Record(topic, b"21", b"named", (), 1),
                    Record(topic, b"21", b"x" * 3_000_000, (), 1),
                    Record(topic, None, None, (), 1),
                    Record(topic, b"21", b"by the key again"),
                ]
            )
            assert await producer.send([Record(topic, b"21", b"sent", (), 1)]) == [None]
        finally:
            await producer.stop()
        assert isinstance(answers.pop(2), SendFailure)
        assert answers[0] == Acknowledged(0, 0)
        assert answers[3] == Acknowledged(0, 1)
        # Those of one batch that was refused are sent one by one, in whatever order they come to.
        assert set(answers[1:3]) == {Acknowledged(1, 3), Acknowledged(1, 4)}

    async def test_a_thousand_records_are_all_acknowledged(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        producer = control.transport.producer()
        await producer.start()
        records = [Record(topic, b"%d" % (number % 50), b"%d" % number) for number in range(1000)]
        try:
            halves = await asyncio.gather(producer.send(records[:500]), producer.send(records[500:]))
        finally:
            await producer.stop()
        assert [*halves[0], *halves[1]] == [None] * 1000
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            seen = await member.reads(1000)
        assert sorted(int(message.value or b"") for message in seen) == list(range(1000))

    # -- outages

    async def commits_after_outage(self, member: Member, control: BrokerControl, topic: str, group: str) -> None:
        """After an outage a commit of ten messages is kept: by the first commit, unless a transport promises less."""
        await member.commit()
        assert (await control.committed(group, topic))[TopicPartition(topic, 0)] == 10

    async def test_an_outage_is_survived(self, private_control: BrokerControl, group: str) -> None:
        control, topic = private_control, f"topic-{uuid4().hex[:8]}"
        await control.create(topic, 2)
        await control.append(topic, numbered(5))
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await member.reads(5)
            async with control.outage():
                with pytest.raises(Unavailable):
                    await member.commit()
            await control.append(topic, numbered(5, start=5))
            await until(lambda: len({message.offset for message in member.seen}) == 10, "all ten messages")
            await self.commits_after_outage(member, control, topic, group)
