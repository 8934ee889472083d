"""The contract of `consumerkit.transports.base` about log readers; every transport inherits it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from consumerkit.errors import PartitionUnusable, StartError
from consumerkit.message import Message
from consumerkit.transports.base import LogReader, Span
from tests.contracts.control import BrokerControl
from tests.contracts.member import offsets


@asynccontextmanager
async def started(reader: LogReader) -> AsyncIterator[LogReader]:
    try:
        await reader.start()
        yield reader
    finally:
        await reader.stop()


async def read_out(reader: LogReader, limit: int = 100) -> list[Message]:
    """Everything that the reader returns until it is finished."""
    found: list[Message] = []
    async with asyncio.timeout(120):
        while not reader.finished:
            some = await reader.fetch(limit, 1.0)
            assert len(some) <= limit
            found += some
    return found


class ReaderContract(ABC):
    """Inherit it beside the contract of consumers and producers."""

    @pytest.fixture
    @abstractmethod
    def control(self) -> BrokerControl:
        """A broker, shared by the tests of a class."""

    @pytest.fixture
    async def log(self, control: BrokerControl) -> str:
        """A topic of two partitions."""
        name = f"log-{uuid4().hex[:8]}"
        await control.create(name, 2)
        return name

    async def test_a_reader_reads_all_that_is_there_when_it_starts_and_no_more(
        self, control: BrokerControl, log: str
    ) -> None:
        await control.append(log, [b"%d" % number for number in range(150)], 0, key=b"k", headers=(("h", b"\xff"),))
        await control.append(log, [None], 1)
        reader = control.transport.reader(log)
        try:
            assert await reader.start() == {0: Span(0, 150), 1: Span(0, 1)}
            await control.append(log, [b"late"], 0)
            await control.append(log, [b"late"], 1)
            seen = await read_out(reader, limit=40)
        finally:
            await reader.stop()
        assert offsets(seen, 0) == list(range(150))
        assert offsets(seen, 1) == [0]
        assert reader.positions == {0: 150, 1: 1}
        first = next(message for message in seen if message.partition == 0)
        info = (await control.transport.topics([log]))[log]
        assert (first.key, first.value, first.headers) == (b"k", b"0", (("h", b"\xff"),))
        assert (first.topic, first.topic_id) == (log, info.topic_id)
        assert first.timestamp > 0

    async def test_a_reader_of_an_empty_topic_has_finished_when_it_starts(
        self, control: BrokerControl, log: str
    ) -> None:
        async with started(control.transport.reader(log)) as reader:
            assert reader.finished
            assert reader.positions == {0: 0, 1: 0}

    async def test_a_reader_begins_where_it_is_told_within_the_log(self, control: BrokerControl, log: str) -> None:
        await control.append(log, [b"x"] * 10, 0)
        await control.append(log, [b"x"] * 10, 1)
        async with started(control.transport.reader(log, {0: 7, 1: 99})) as reader:
            seen = await read_out(reader)
        assert (offsets(seen, 0), offsets(seen, 1)) == ([7, 8, 9], [])

    async def test_a_reader_begins_with_the_oldest_record_that_retention_left(
        self, control: BrokerControl, log: str
    ) -> None:
        await control.append(log, [b"x"] * 10, 0)
        await control.delete_before(log, 0, 4)
        async with started(control.transport.reader(log, {0: 1})) as reader:
            assert offsets(await read_out(reader), 0) == list(range(4, 10))

    async def test_two_readers_take_nothing_from_each_other(self, control: BrokerControl, log: str) -> None:
        await control.append(log, [b"x"] * 20, 0)
        async with started(control.transport.reader(log)) as one, started(control.transport.reader(log)) as other:
            assert offsets(await read_out(one), 0) == offsets(await read_out(other), 0) == list(range(20))

    async def test_a_reader_of_a_missing_topic_does_not_start(self, control: BrokerControl) -> None:
        name = f"missing-{uuid4().hex[:8]}"
        with pytest.raises(StartError, match=name):
            async with started(control.transport.reader(name)):
                pass
        assert name not in await control.topics()

    async def test_a_reader_that_retention_overtakes_says_so(self, control: BrokerControl, log: str) -> None:
        # Large enough that the client cannot hold the second half ready when the first is returned.
        for _ in range(24):
            await control.append(log, [b"x" * 900_000], 0)
        async with started(control.transport.reader(log)) as reader:
            assert await reader.fetch(1, 5.0)
            await control.delete_before(log, 0, 24)
            with pytest.raises(PartitionUnusable, match=log):
                await read_out(reader, limit=1)
