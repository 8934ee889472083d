"""Resends from before what the ledger remembers, found out by the time of their event."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from consumerkit import ConfigurationError, header, record_timestamp
from consumerkit.declaration import declare
from consumerkit.engine.prepare import moment_of
from consumerkit.events import GroupCommitted
from consumerkit.identity import MessageId
from consumerkit.storage.tables import DEFAULT_TABLES as TABLES
from tests.integration.memory_stage import MemoryStage, Write
from tests.services import PostgresServer

NOW = datetime.now(UTC)


@pytest.fixture
async def place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    made = MemoryStage(postgres.url(database), partitions=1)
    await made.create_tables()
    yield made
    await made.close()


def send(place: MemoryStage, number: int, at: str | None, key: bytes = b"k") -> None:
    headers = (("id", b"%d" % number),) + ((("at", at.encode()),) if at is not None else ())
    place.broker.append("t", b"v", key=key, headers=headers)


async def test_an_old_event_that_the_ledger_does_not_know_is_quarantined_once(place: MemoryStage) -> None:
    old, young = (NOW - timedelta(days=8)).isoformat(), (NOW - timedelta(days=6)).isoformat()
    send(place, 1, young)
    async with place.run(Write(event_time=header("at"))) as run:
        await place.until_written(run, 1)
    send(place, 1, old)  # known: a duplicate, however old it says it is
    send(place, 2, old)
    send(place, 3, young)
    send(place, 4, None)
    send(place, 5, "yesterday")
    async with place.run(Write(event_time=header("at"), name="write")) as run:
        lines = await place.until_written(run, 4)
        await run.until(lambda: place.committed() == place.ends(), "all is finished")
    assert [line.message_id for line in lines] == ["1", "3", "4", "5"]
    assert sum(event.duplicates for event in run.seen(GroupCommitted)) == 1
    c = TABLES.dead_letters.c
    letters = await place.database.run(lambda s: list(s.execute(select(c.message_id, c.reason, c.attempts))))
    assert [tuple(row) for row in letters] == [("2", "stale", 0)]
    ledger = TABLES.processed_messages.c.message_id
    assert await place.database.run(lambda s: set(s.scalars(select(ledger)))) == {"1", "3", "4", "5"}


async def test_nothing_is_stale_where_the_ledger_never_forgets(place: MemoryStage) -> None:
    send(place, 1, "2001-01-01")
    async with place.run(Write(event_time=header("at")), retention=None) as run:
        await place.until_written(run, 1)


async def test_the_records_own_timestamp(place: MemoryStage) -> None:
    headers = (("id", b"1"),)
    place.broker.append("t", b"v", headers=headers, timestamp=int((time.time() - 8 * 86400) * 1000))
    place.broker.append("t", b"v", headers=(("id", b"2"),))
    async with place.run(Write(event_time=record_timestamp())) as run:
        lines = await place.until_written(run, 1)
        await run.until(lambda: place.committed() == place.ends(), "all is finished")
    assert [line.message_id for line in lines] == ["2"]


@pytest.mark.parametrize(
    "text, seconds",
    [
        (b"1700000000", 1_700_000_000.0),
        (b"1700000000123", 1_700_000_000.123),
        (b"2023-11-14T22:13:20Z", 1_700_000_000.0),
        (b"2023-11-14 22:13:20", 1_700_000_000.0),
        (b"2023-11-15T00:13:20+02:00", 1_700_000_000.0),
        (b"soon", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_what_is_read_as_a_time(text: bytes, seconds: float | None) -> None:
    assert moment_of(MessageId(b"", (text,), False)) == seconds
    assert moment_of(None) is None


def test_what_is_no_time_and_what_is_no_id() -> None:
    with pytest.raises(ConfigurationError, match=r"record_timestamp.*or None"):
        declare(Write(event_time="at"))
    with pytest.raises(ConfigurationError, match="is a time, which many messages may share"):
        declare(Write(message_id=record_timestamp()))
