"""A fault of one message is that message's: it halts no handler, holds up no other message, and has its attempts."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from consumerkit import Context, Handler, Retry, fixed, header
from consumerkit.events import AttemptFailed, MessageDeadLettered
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, line
from tests.services import PostgresServer

RETRY = Retry(attempts=2, wait=fixed(0))
Before = Callable[[Context], Awaitable[None]]


@pytest.fixture(params=["psycopg", "asyncpg"])
async def server_place(
    request: pytest.FixtureRequest, postgres: PostgresServer, database: str
) -> AsyncIterator[MemoryStage]:
    async for made in _made(postgres.url(database, request.param)):
        yield made


@pytest.fixture(params=["psycopg", "asyncpg", "sqlite"])
async def place(
    request: pytest.FixtureRequest, postgres: PostgresServer, database: str, tmp_path: Path
) -> AsyncIterator[MemoryStage]:
    is_sqlite = request.param == "sqlite"
    url = f"sqlite+aiosqlite:///{tmp_path}/db" if is_sqlite else postgres.url(database, request.param)
    async for made in _made(url):
        yield made


async def _made(url: str) -> AsyncIterator[MemoryStage]:
    made = MemoryStage(url, partitions=1)
    await made.create_tables()
    yield made
    await made.close()


class PlainWrite(Handler[bytes]):
    """Adds a line for each message, with a plain function, after `before` has let it."""

    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = RETRY

    def __init__(self, before: Callable[[Context[Session]], object]) -> None:
        self.before = before

    def handle(self, event: bytes, context: Context[Session]) -> None:
        context.session.add(line(context))
        self.before(context)


def executes(*statements: str) -> Before:
    async def before(context: Context) -> None:
        for statement in statements:
            await context.session.execute(text(statement))

    return before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TEMP TABLE scratch (n int) ON COMMIT DROP",
        "CREATE TEMP TABLE scratch (n int)",
        "DECLARE rows CURSOR FOR SELECT 1",
        "DECLARE rows CURSOR WITH HOLD FOR SELECT 1",
        "PREPARE one AS SELECT 1",
    ],
)
async def test_messages_that_make_the_same_object_cannot_share_a_transaction(
    server_place: MemoryStage, statement: str
) -> None:
    place, total = server_place, 60
    for number in range(total):
        place.append(number, key=b"%d" % number)
    handler = Write(executes(statement))
    async with place.run(handler) as run:
        await place.until_written(run, total)
        assert not run.task.done()
    assert not run.seen(AttemptFailed)
    assert not run.seen(MessageDeadLettered)
    assert len(handler.seen) < 3 * total


async def test_a_plain_handler_finds_what_an_earlier_message_left(postgres: PostgresServer, database: str) -> None:
    async for place in _made(postgres.url(database)):
        for number in range(20):
            place.append(number, key=b"%d" % number)
        handler = PlainWrite(lambda context: context.session.execute(text("PREPARE one AS SELECT 1")))
        async with place.run(handler) as run:
            await place.until_written(run, 20)
        assert not run.seen(AttemptFailed)


async def test_an_object_that_is_always_there_is_its_messages_own_fault(server_place: MemoryStage) -> None:
    place = server_place

    async def before(context: Context) -> None:
        if context.message_id == "7":
            await context.session.execute(text("CREATE TABLE lines (n int)"))

    for number in range(20):
        place.append(number, key=b"%d" % number)
    async with place.run(Write(before, retry=RETRY)) as run:
        await place.until_written(run, 19)
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "the dead letter")
    assert [event.attempt for event in run.seen(AttemptFailed)] == [1, 2]
    assert [event.message_id for event in run.seen(MessageDeadLettered)] == ["7"]


async def test_an_error_in_prefetch_is_found_by_halving(place: MemoryStage) -> None:
    total, bad = 1000, {str(number) for number in range(37, 1000, 100)}
    transactions = 0

    class Prefetching(Write):
        batch_size = 100

        async def prefetch(self, events: list[bytes], session: object) -> None:
            nonlocal transactions
            transactions += 1
            if any(event.decode() in bad for event in events):
                raise ValueError("no such row")

    for number in range(total):
        place.append(number, key=b"%d" % number, value=b"%d" % number)
    async with place.run(Prefetching(retry=Retry(attempts=1))) as run:
        await place.until_written(run, total - len(bad))
        await run.until(lambda: len(run.seen(MessageDeadLettered)) == len(bad), "the dead letters")
    assert {event.message_id for event in run.seen(MessageDeadLettered)} == bad
    assert transactions < 40 * len(bad)
