"""Resends from before what the ledger remembers, found out by the time of their event."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from consumerkit import Brake, ConfigurationError, fixed, header, record_timestamp
from consumerkit.engine.transaction.prepare import moment_of
from consumerkit.events import BrakeOn, GroupCommitted, MessageDeadLettered
from consumerkit.handlers.declaration import declare
from consumerkit.handlers.message_id import MessageId
from consumerkit.outcome import Reason
from consumerkit.storage.tables import DEFAULT_TABLES as TABLES
from tests.integration.memory_stage import MemoryStage, Write, opened
from tests.services import PostgresServer
from tests.variants import further_cases

NOW = datetime.now(UTC)


@pytest.fixture
async def place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    async with opened(postgres.url(database), partitions=1) as made:
        yield made


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


@pytest.mark.parametrize("unit", [1, 1e3, 1e6, 1e9])
async def test_a_number_of_any_unit_tells_how_old_an_event_is(place: MemoryStage, unit: float) -> None:
    day = datetime.now(UTC).timestamp() - 86_400
    send(place, 1, str(int(day * unit)))
    async with place.run(Write(event_time=header("at")), retention=3600) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is finished")
        assert [event.reason for event in run.seen(MessageDeadLettered)] == [Reason.STALE]
    assert await place.lines() == []


async def test_what_has_no_readable_time_runs_and_is_counted(place: MemoryStage) -> None:
    times = ["51969-01-01", "1e300", "nan", "yesterday", None, (NOW + timedelta(days=400)).isoformat()]
    for number, at in enumerate(times):
        send(place, number, at)
    send(place, 99, (NOW + timedelta(hours=1)).isoformat())  # a producer's clock may be an hour ahead
    async with place.run(Write(event_time=header("at"))) as run:
        await place.until_written(run, len(times) + 1)
        await run.until(lambda: place.committed() == place.ends(), "all is finished")
    assert sum(event.unreadable_times for event in run.seen(GroupCommitted)) == len(times)


@pytest.mark.parametrize("days", [8, -8])
async def test_a_workers_clock_makes_no_event_older_or_younger(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + days * 86_400)
    for number in range(60):
        send(place, number, datetime.fromtimestamp(right(), UTC).isoformat(), key=b"%d" % number)
    send(place, 99, datetime.fromtimestamp(right() - 8 * 86_400, UTC).isoformat(), key=b"old")
    async with place.run(Write(event_time=header("at"))) as run:
        assert len(await place.until_written(run, 60)) == 60
        await run.until(lambda: place.committed() == place.ends(), "all is finished")
    assert [event.message_id for event in run.seen(MessageDeadLettered)] == ["99"]


@pytest.mark.parametrize("batch", [*further_cases(1), 500])
async def test_a_flood_of_stale_messages_asks_the_brake(place: MemoryStage, batch: int) -> None:
    old = (NOW - timedelta(days=8)).isoformat()
    for number in range(40):
        send(place, number, old, key=b"%d" % number)
    quick = Brake(probe=fixed(0.1))
    async with place.run(Write(event_time=header("at"), brake=quick, batch_size=batch)) as run:
        await run.until(lambda: bool(run.seen(BrakeOn)), "the brake")
        # What would be dead is parked, so that the log goes on.
        await run.until(lambda: place.committed() == place.ends(), "all is finished", within=120)
        assert len(run.seen(MessageDeadLettered)) == 10
    assert await place.lines() == []
    # The clock was wrong, and is right now: what was held back runs.
    async with place.run(Write(event_time=header("at"), brake=quick, batch_size=batch), retention=None) as run:
        await place.until_written(run, 30)


async def test_old_resends_that_the_ledger_knows_ask_no_brake(place: MemoryStage) -> None:
    old = (NOW - timedelta(days=8)).isoformat()
    for number in range(30):
        send(place, number, None)
    async with place.run(Write(event_time=header("at"))) as run:
        await place.until_written(run, 30)
    for number in range(30):
        send(place, number, old)
    async with place.run(Write(event_time=header("at"))) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is finished")
    assert sum(event.duplicates for event in run.seen(GroupCommitted)) == 30
    assert not run.seen(BrakeOn)


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
        (b"1700000000123456", 1_700_000_000.123456),
        (b"1700000000123456789", 1_700_000_000.123456789),
        (b"1.7e18", 1_700_000_000.0),
        (b"-86400", -86_400.0),
        (b"-1700000000123", -1_700_000_000.123),
        (b"99999999999", 99_999_999_999.0),
        (b"1e20", None),
        (b"nan", None),
        (b"inf", None),
        (b"-inf", None),
        (b"9999-12-31T23:59:59-23:59", 253402387139.0),
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
    with pytest.raises(ConfigurationError, match="is a time, and many messages may share one"):
        declare(Write(message_id=record_timestamp()))
