"""A pooler in transaction mode is recognised and logged, and the worker goes on."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import psycopg
import pytest

from consumerkit import ConfigurationError, Context, StartError
from consumerkit.events import MessageDeadLettered
from consumerkit.storage.database import Database
from tests.integration.memory_stage import MemoryStage, Write
from tests.services import PostgresServer
from tests.services.pgbouncer import pgbouncer

COUNT = 400


@pytest.fixture(scope="module")
def bouncer(postgres: PostgresServer) -> Iterator[str]:
    with pgbouncer(postgres) as address:
        yield address


@pytest.fixture(params=["psycopg", "asyncpg"])
async def place(
    request: pytest.FixtureRequest, bouncer: str, postgres: PostgresServer, database: str
) -> AsyncIterator[MemoryStage]:
    direct = MemoryStage(postgres.url(database))
    await direct.create_tables()
    await direct.close()
    made = MemoryStage(f"postgresql+{request.param}://postgres@{bouncer}/{database}?prepared_statements=off")
    made.broker.create_topic("out", 1)
    yield made
    await made.close()


async def publish(context: Context) -> None:
    context.publish("out", value=b"v", key=b"k")


async def all_done(place: MemoryStage, url: str) -> list[str]:
    """Have messages processed and published through the pooler; return what stands in the way."""
    for number in range(COUNT):
        place.append(number, key=b"%d" % number)
    async with place.run(Write(publish, batch_size=3, concurrency=3), database=url) as run:
        await place.until_written(run, COUNT)
        await run.until(lambda: place.broker.logs.topics["out"].partitions[0].end >= COUNT, "all that was published")
        assert not run.seen(MessageDeadLettered)
    assert sorted(int(line.message_id) for line in await place.lines()) == list(range(COUNT))
    return [repr(event) for event in run.events if type(event).__name__ in ("Trouble", "AttemptFailed")]


@pytest.mark.matrix
async def test_with_prepared_statements_switched_off_nothing_is_in_the_way(
    place: MemoryStage, caplog: pytest.LogCaptureFixture
) -> None:
    assert await all_done(place, place.url) == []
    assert "pooler" not in caplog.text


@pytest.mark.matrix
async def test_a_pooler_is_recognised_told_and_survived(place: MemoryStage, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        troubles = await all_done(place, place.url.partition("?")[0])
    [told] = [record.getMessage() for record in caplog.records if "pooler in transaction mode" in record.getMessage()]
    assert "?prepared_statements=off in the URL" in told
    assert not any("AttemptFailed" in one for one in troubles)
    assert len(troubles) < 30


@pytest.mark.matrix
async def test_a_worker_starts_though_each_transaction_gets_another_session(
    place: MemoryStage, bouncer: str, caplog: pytest.LogCaptureFixture
) -> None:
    dsn = f"postgresql://postgres@{bouncer}/{place.url.partition('?')[0].rpartition('/')[2]}"
    with ExitStack() as opened:
        for _ in range(4):  # at the same time, so that the pooler has as many sessions
            opened.enter_context(psycopg.connect(dsn, prepare_threshold=None)).execute("SELECT 1")
    for number in range(10):
        with caplog.at_level(logging.WARNING):
            async with place.run(Write(), database=place.url.partition("?")[0]) as run:
                place.append(number)
                await place.until_written(run, number + 1)
    if "asyncpg" in place.url:  # psycopg prepares a statement when it has run five times
        assert "pooler in transaction mode" in caplog.text


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_pooler_in_statement_mode_is_refused_with_the_way_out(
    postgres: PostgresServer, database: str, driver: str
) -> None:
    stage = MemoryStage(postgres.url(database))
    with pgbouncer(postgres, "statement") as address:
        worker = stage.make(Write(), database=f"postgresql+{driver}://postgres@{address}/{database}")
        with pytest.raises(StartError, match=r"statement pooling mode; .*set the pooler's pool_mode to transaction$"):
            await worker.start()
    await stage.close()


def test_a_switch_that_says_neither_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="neither on nor off"):
        Database("postgresql+psycopg://h/x?prepared_statements=maybe")


def test_sqlite_has_no_such_switch() -> None:
    with pytest.raises(ConfigurationError, match="is for PostgreSQL"):
        Database("sqlite:///x.db?prepared_statements=off")
