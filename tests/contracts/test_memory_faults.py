"""Faults of the broker in memory behave as those of Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress

import pytest

from consumerkit.errors import Unavailable
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Position, Record, SendFailure, Subscription
from consumerkit.transports.memory import Acknowledgement, Memory, MemoryBroker
from tests.contracts.member import Member, offsets, until
from tests.contracts.reader_contract import read_out, started

TOPIC, GROUP = "t", "g"
AT, OTHER = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)
LOST = SendFailure("REQUEST_TIMED_OUT", "no answer", permanent=False)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(topics={TOPIC: 2})


@asynccontextmanager
async def member(broker: MemoryBroker, start_from: str = "earliest") -> AsyncIterator[Member]:
    subscription = Subscription(group=GROUP, topics=(TOPIC,), start_from=start_from)  # type: ignore[arg-type]
    async with Member(Memory(broker).consumer(subscription)) as made:
        yield made


def append(broker: MemoryBroker, count: int, partition: int = 0) -> None:
    for number in range(count):
        broker.append(TOPIC, b"%d" % number, partition=partition)


async def test_added_partitions_are_noticed_at_the_next_rebalance(broker: MemoryBroker) -> None:
    async with member(broker) as one:
        await one.holds(2)
        broker.add_partitions(TOPIC, 3)
        append(broker, 2, partition=2)
        assert len(one.listener.held) == 2
        await broker.rebalance(GROUP)
        await one.holds(3)
        assert offsets(await one.reads(2), 2) == [0, 1]
    assert (await Memory(broker).topics([TOPIC]))[TOPIC].partitions == 3


async def test_control_records_are_gaps_in_the_middle_and_at_the_end(broker: MemoryBroker) -> None:
    append(broker, 1)
    broker.append_control_records(TOPIC, 0, 2)
    append(broker, 1)
    broker.append_control_records(TOPIC, 0)
    async with member(broker) as one:
        assert offsets(await one.reads(2), 0) == [0, 3]
        assert (await one.consumer.describe([AT]))[AT].end == 5
        append(broker, 1)
        assert offsets(await one.reads(3), 0) == [0, 3, 5]
    assert broker.committed(GROUP)[AT] == 6


async def test_retention_takes_what_nobody_is_given_too(broker: MemoryBroker) -> None:
    append(broker, 2)
    broker.append_control_records(TOPIC, 0, 3)
    append(broker, 1)
    broker.delete_before(TOPIC, 0, 4)
    async with member(broker) as one:
        assert offsets(await one.reads(1), 0) == [5]
        assert (await one.consumer.describe([AT]))[AT].start == 4


@pytest.mark.parametrize("records, markers", [(0, 3), (2, 1)])
async def test_a_reader_finishes_behind_control_records(broker: MemoryBroker, records: int, markers: int) -> None:
    append(broker, records)
    broker.append_control_records(TOPIC, 0, markers)
    async with started(Memory(broker).reader(TOPIC)) as reader:
        assert len(await read_out(reader)) == records
        assert reader.positions[0] == records + markers


async def test_a_partition_without_a_leader_is_neither_read_nor_written_nor_described(broker: MemoryBroker) -> None:
    append(broker, 3)
    producer = Memory(broker).producer()
    await producer.start()
    keyed = [Record(TOPIC, key, b"v") for key in (b"21", b"1")]
    assert {broker.logs.topics[TOPIC].partition_for(record.key) for record in keyed} == {0, 1}
    async with member(broker) as one:
        await one.holds(2)
        await one.reads(3)
        with broker.leaderless(TOPIC, 0):
            append(broker, 1)
            append(broker, 1, partition=1)
            await one.reads(4)
            answers = await producer.send(keyed)
            assert [answer is None for answer in answers] == [False, True]
            assert answers[0] is not None
            assert not answers[0].permanent
            # It hides the other from no one.
            assert set(await one.consumer.describe([AT, OTHER])) == {OTHER}
            assert [one.span is None for _, one in sorted((await one.consumer.survey(TOPIC)).partitions.items())] == [
                True,
                False,
            ]
            with pytest.raises(Unavailable, match="leader"):
                await one.consumer.since(AT, 0)
            assert offsets(one.seen, 0) == [0, 1, 2]
        assert offsets(await one.reads(6), 0) == [0, 1, 2, 3]


async def test_a_partition_that_has_no_leader_yet_is_assigned_once_it_has(broker: MemoryBroker) -> None:
    append(broker, 3)
    async with member(broker) as one:
        with broker.leaderless(TOPIC, 0):
            await one.holds(1)
            append(broker, 1, partition=1)
            await one.reads(1)
            assert set(one.listener.held) == {OTHER}
        await one.holds(2)
        assert offsets(await one.reads(4), 0) == [0, 1, 2]


async def test_answers_come_late_and_in_any_order_while_records_keep_theirs(broker: MemoryBroker) -> None:
    gate = asyncio.Event()
    held = {b"1": gate}
    producer = Memory(broker).producer()
    with broker.acknowledging(lambda record: Acknowledgement(gate=held.get(record.value or b""))):
        first = asyncio.create_task(producer.send([Record(TOPIC, b"21", b"1")]))
        await asyncio.sleep(0)
        assert await producer.send([Record(TOPIC, b"21", b"2")]) == [None]
        assert not first.done()
        assert [record.value for record in broker.records(TOPIC)] == [b"1", b"2"]
        gate.set()
        assert await first == [None]
    assert await producer.send([Record(TOPIC, b"21", b"1")]) == [None]


@pytest.mark.parametrize("written", [True, False])
async def test_a_failed_answer_says_nothing_of_whether_the_record_is_written(
    broker: MemoryBroker, written: bool
) -> None:
    producer = Memory(broker).producer()
    with broker.acknowledging(lambda _: Acknowledgement(failure=LOST, written=written)):
        assert await producer.send([Record(TOPIC, b"k", b"1")]) == [LOST]
    assert len(broker.records(TOPIC)) == int(written)


def test_what_is_acknowledged_is_written() -> None:
    with pytest.raises(ValueError, match="needs a failure"):
        Acknowledgement(written=False)


async def test_a_member_that_was_given_up_is_told_nothing_before_it_is_back(broker: MemoryBroker) -> None:
    append(broker, 5)
    async with member(broker) as one:
        await one.reads(5)
        old = dict(one.listener.held)
        async with member(broker) as other:
            await until(lambda: len(one.listener.held) == len(other.listener.held) == 1, "the shares")
            held = dict(one.listener.held)
            async with broker.cut_off(GROUP):
                await other.holds(2)
                assert one.listener.held == held
                assert not one.listener.calls("lost")
                with pytest.raises(Unavailable):
                    await one.consumer.commit({at: Position(1, epoch) for at, epoch in held.items()})
                append(broker, 3)
                append(broker, 3, partition=1)
                await other.reads(6)
                assert offsets(one.seen, 1) == []
            await until(lambda: len(one.listener.held) == len(other.listener.held) == 1, "the shares again")
            assert len(one.listener.calls("lost")) == 1
            await one.consumer.commit({at: Position(0, epoch) for at, epoch in old.items()})
            assert broker.committed(GROUP)[AT] == 8


async def test_a_member_that_stops_while_it_is_given_up_does_not_come_back(broker: MemoryBroker) -> None:
    async with member(broker) as one:
        await one.holds(2)
        async with broker.cut_off(GROUP):
            await one.stop()
            assert len(one.listener.calls("lost")) == 1
    assert broker.group(GROUP).members == ()


async def test_a_member_whose_stop_is_waited_for_no_longer_leaves_all_the_same(broker: MemoryBroker) -> None:
    async with member(broker) as one, member(broker) as other:
        await other.holds(1)
        entered, goes_on = asyncio.Event(), asyncio.Event()

        async def waits() -> None:
            entered.set()
            await goes_on.wait()

        one.listener.before_leaving = waits
        stopping = asyncio.create_task(one.consumer.stop())
        await entered.wait()
        stopping.cancel()
        with suppress(asyncio.CancelledError):
            await stopping
        goes_on.set()
        await other.holds(2)
        assert len(broker.group(GROUP).members) == 1


async def test_what_holds_no_message_at_the_end_of_a_log_is_passed_over(broker: MemoryBroker) -> None:
    append(broker, 3)
    broker.append_control_records(TOPIC, 0, 2)
    async with member(broker) as one:
        await one.reads(3)
        epoch = one.listener.held[AT]
        await until(lambda: one.passed.get(AT) == Position(5, epoch), "the markers are passed")
        epoch = one.goes_to(AT, 3)
        await until(lambda: one.passed.get(AT) == Position(5, epoch), "the markers alone are passed")
        await one.consumer.hold([AT])
        broker.append_control_records(TOPIC, 0, 1)
        await one.consumer.fetch(1, 0.05)
        assert AT not in one.consumer.passed()
        await one.consumer.release([AT])
        await until(lambda: one.passed.get(AT) == Position(6, epoch), "the last one is passed")


async def test_a_listener_that_seeks_while_it_gives_a_partition_up_reads_it_no_more(broker: MemoryBroker) -> None:
    """A take-over may end while the partition is taken away again."""
    async with member(broker) as one:
        await one.holds(2)
        revoked = one.listener.revoked

        async def seeking(partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
            for at in partitions:
                one.consumer.seek(at, 0)
            return await revoked(partitions)

        one.listener.revoked = seeking  # type: ignore[method-assign]
        async with member(broker) as other:
            await other.holds(1)
            await one.holds(1)
            [held] = one.listener.held
            assert set(one.consumer.passed()) == {held}
            append(broker, 1, partition=1 - held.partition)
            assert await one.consumer.fetch(10, 0) == []
