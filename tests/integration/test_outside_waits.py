"""A handler that waits for something outside the database is noticed; its messages then share no transaction."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import func, select

from consumerkit import (
    Brake,
    Context,
    Handler,
    IdempotencyKey,
    Json,
    Retry,
    event_field,
    failpoints,
    fixed,
    header,
    step,
)
from consumerkit.errors import Undecodable
from consumerkit.events import OutsideWaitNoticed
from consumerkit.message import Message
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, line
from tests.integration.stage import Run
from tests.integration.step_stage import LEDGER, LOT
from tests.services import PostgresServer

MESSAGES = 60


class MailServer:
    """Takes one line for each mail, counts it, and answers."""

    def __init__(self) -> None:
        self.mails: Counter[str] = Counter()
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mail = await reader.readline()
        self.mails[mail.decode().strip()] += 1
        writer.write(b"250 OK\n")
        await writer.drain()
        writer.close()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["MailServer"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def send(self, text: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{text}\n".encode())
        await reader.readline()
        writer.close()
        await writer.wait_closed()


def fails(message_id: str) -> bool:
    """Whether the handler raises for a message: a few in a hundred."""
    return int(message_id) % 50 == 30


class Mailing(Handler[bytes]):
    """Writes a line and sends a mail for each message that is good."""

    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=1, wait=fixed(0))

    def __init__(self, server: MailServer, **declared: Any) -> None:
        self.server = server
        vars(self).update(declared)

    async def handle(self, event: bytes, context: Context) -> None:
        context.session.add(line(context))
        if fails(context.message_id):
            raise ValueError(context.message_id)
        await self.server.send(context.message_id)


class Noticed(Write):
    """Says nothing of what it waits for."""

    shares_transaction: bool | None = None


class Counted(Json):
    """Counts what it reads."""

    reads = 0

    def decoder(self, event_type: Any) -> Any:
        decode = super().decoder(event_type)

        def read(message: Message) -> Any:
            self.reads += 1
            return decode(message)

        return read


async def pause(_context: Context | None = None) -> None:
    await asyncio.sleep(0.001)


async def open_stage(postgres: PostgresServer, database: str, driver: str) -> MemoryStage:
    made = MemoryStage(postgres.url(database, driver), partitions=1)
    await made.create_tables()
    return made


@pytest.fixture
async def stage(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    made = await open_stage(postgres, database, "psycopg")
    yield made
    await made.close()


async def finish(stage: MemoryStage, handler: Handler[Any], count: int = 0, **settings: Any) -> Run:
    """Run a handler until all is finished, with so many messages more."""
    for number in range(count):
        stage.append(number)
    async with stage.run(handler, **settings) as run:
        await run.until(lambda: stage.committed() == stage.ends(), "all is finished")
    return run


async def written(stage: MemoryStage) -> list[str]:
    return [one.message_id for one in await stage.lines()]


async def count(stage: MemoryStage, table: Any) -> int:
    query = select(func.count()).select_from(table)
    return await stage.database.run(lambda session: session.scalars(query).one())


# Noticed.


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_handler_with_defaults_sends_each_mail_once_though_others_fail(
    postgres: PostgresServer, database: str, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage = await open_stage(postgres, database, driver)
    async with MailServer().open() as server:
        run = await finish(stage, Mailing(server), MESSAGES)
    good = [str(number) for number in range(MESSAGES) if not fails(str(number))]
    assert await written(stage) == good
    assert server.mails == Counter(good)
    (noticed,) = run.seen(OutsideWaitNoticed)
    assert noticed.handler == "write"
    assert noticed.place.startswith("tests/integration/test_outside_waits.py:")
    assert noticed.place.endswith(" in MailServer.send")
    (told,) = (one for one in caplog.records if "something other than its session" in one.message)
    assert told.levelno == logging.WARNING
    assert noticed.place in told.message
    assert "shares_transaction = True" in told.message
    await stage.close()


async def test_a_wait_that_is_declared_harmless_changes_nothing(stage: MemoryStage) -> None:
    async with MailServer().open() as server:
        run = await finish(stage, Mailing(server, shares_transaction=True), MESSAGES)
    assert sum(server.mails.values()) > len(server.mails), "a neighbour's failure sent no mail again"
    assert not run.seen(OutsideWaitNoticed)
    assert max(run.groups()) > 1


async def test_a_handler_that_declares_it_shares_no_transaction_from_the_beginning(stage: MemoryStage) -> None:
    run = await finish(stage, Noticed(shares_transaction=False), 30)
    assert set(run.groups()) == {1}
    assert not run.seen(OutsideWaitNoticed)


async def test_a_handler_that_waits_for_its_session_alone_shares_as_before(stage: MemoryStage) -> None:
    async def ask(context: Context) -> None:
        await context.session.flush()

    run = await finish(stage, Noticed(ask, batch_time=60.0), 30)
    assert run.groups() == [30]


async def test_a_wait_that_comes_late_ends_the_batch_there(stage: MemoryStage) -> None:
    async def wait_at_the_third(context: Context) -> None:
        if context.message_id == "2":
            await pause()

    codec = Counted()
    run = await finish(stage, Noticed(wait_at_the_third, batch_time=60.0, codec=codec), 6)
    assert run.groups() == [3, 1, 1, 1]
    assert await written(stage) == [str(number) for number in range(6)]
    assert codec.reads == 6 + 3, "each of the rest was taken by itself"
    assert len(run.seen(OutsideWaitNoticed)) == 1


async def test_what_one_lane_notices_ends_the_batches_of_the_others(stage: MemoryStage) -> None:
    begun = asyncio.Event()
    runs: list[Run] = []
    keys = {hash(b"%d" % number) % 2: b"%d" % number for number in range(100)}
    for number in range(20):
        stage.append(number, key=keys[number % 2])

    async def meet(context: Context) -> None:
        if context.message_id == "0":
            begun.set()
            # An event would be a wait, and this lane is to notice nothing by itself.
            while not runs or not runs[0].seen(OutsideWaitNoticed):  # noqa: ASYNC110
                await asyncio.sleep(0)
        elif context.message_id == "1":
            await begun.wait()
            await pause()

    async with stage.run(Noticed(meet, concurrency=2, batch_time=60.0)) as run:
        runs.append(run)
        await run.until(lambda: stage.committed() == stage.ends(), "all is finished")
    assert set(run.groups()) == {1}


class Stepping(Noticed):
    """Runs a step within `handle`."""

    @step
    async def charge(self, key: IdempotencyKey) -> None:
        await pause()

    async def handle(self, event: bytes, context: Context) -> None:
        await super().handle(event, context)
        await context.run(self.charge)


async def test_a_step_within_handle_is_no_wait_outside(stage: MemoryStage) -> None:
    run = await finish(stage, Stepping(batch_time=60.0), 10)
    assert run.groups() == [10]
    assert not run.seen(OutsideWaitNoticed)


class Repeating(Noticed):
    """Waits in `on_duplicate`."""

    async def on_duplicate(self, event: bytes, result: object, context: Context) -> None:
        await pause()


async def test_a_wait_where_a_duplicate_is_told_of_is_noticed(stage: MemoryStage) -> None:
    for number in (0, 1, 0, 2, 3):
        stage.append(number)
    run = await finish(stage, Repeating(batch_time=60.0))
    assert run.groups() == [3, 1, 1]
    assert len(run.seen(OutsideWaitNoticed)) == 1


# Around the cut.


@pytest.mark.parametrize("point", ["in_handler", "after_handler", "before_commit", "after_commit"])
async def test_a_fault_around_the_cut_loses_and_doubles_nothing(
    stage: MemoryStage, point: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "fired"
    monkeypatch.setenv("CONSUMERKIT_FAILPOINT_LOG", str(log))
    failpoints.arm({"CONSUMERKIT_FAILPOINT": f"{point}:raise:1"})
    try:
        run = await finish(stage, Noticed(pause), 8)
    finally:
        failpoints.arm({})
    assert log.exists()
    assert await written(stage) == [str(number) for number in range(8)]
    assert await count(stage, LEDGER) == 8
    assert len(run.seen(OutsideWaitNoticed)) <= 1


async def test_the_claims_of_what_was_cut_off_are_not_committed(stage: MemoryStage) -> None:
    hold = asyncio.Event()

    async def wait(context: Context) -> None:
        await (pause() if context.message_id == "0" else hold.wait())

    for number in range(5):
        stage.append(number)
    async with stage.run(Noticed(wait)) as run:
        await stage.until_written(run, 1)
        assert await count(stage, LEDGER) == 1
        hold.set()
        await run.until(lambda: stage.committed() == stage.ends(), "all is finished")
    assert await written(stage) == [str(number) for number in range(5)]


class Unread(Json):
    """Cannot read anything until it is mended."""

    mended = False

    def decoder(self, event_type: Any) -> Any:
        decode = super().decoder(event_type)

        def read(message: Message) -> Any:
            if not self.mended:
                raise Undecodable("not yet")
            return decode(message)

        return read


class ByField(Handler[dict[str, int]]):
    """Has its message IDs from the events, so that what cannot be read has none."""

    name = "write"
    topic = TOPIC
    message_id = event_field("id")
    brake = Brake(allowance=1)
    batch_time = 1e-9

    def __init__(self, codec: Unread) -> None:
        self.codec = codec

    async def handle(self, event: dict[str, int], context: Context) -> None:
        context.session.add(line(context))


async def test_a_parked_message_that_is_cut_off_is_not_taken_for_processed(stage: MemoryStage) -> None:
    codec = Unread()
    for number in range(8):
        stage.append(number, value=b'{"id": %d}' % number)
    await finish(stage, ByField(codec))
    parked = await count(stage, LOT)
    assert parked > 3
    codec.mended = True
    async with stage.run(ByField(codec)) as run:
        await stage.until_written(run, parked)
    assert await count(stage, LOT) == 0
    ids = [int(one.message_id) for one in await stage.lines()]
    assert ids == sorted(set(ids))
