"""Handlers that misbehave, on the broker in memory and a real PostgreSQL."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from consumerkit import Context, Handler, Reject, Retry, fixed, header
from consumerkit.events import AttemptFailed, MessageDeadLettered, Trouble, WorkerStarted
from consumerkit.outcome import Reason
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, line, opened
from tests.integration.stage import Run
from tests.services import PostgresServer
from tests.services.tcp_proxy import CommitProxy, Lose


@pytest.fixture
async def place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    async with opened(postgres.url(database), partitions=1) as made:
        yield made


class Plain(Handler[bytes]):
    """Adds a line for each message in a thread."""

    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=2, wait=fixed(0))

    def handle(self, event: bytes, context: Context[Session]) -> None:
        context.session.add(line(context))
        if context.message_id == "3":
            next(iter(()))


async def test_a_plain_handler_that_runs_out_of_an_iterator_fails_its_message_alone(place: MemoryStage) -> None:
    for number in range(6):
        place.append(number)
    async with place.run(Plain()) as run:
        found = await place.until_written(run, 5)
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    assert [one.message_id for one in found] == ["0", "1", "2", "4", "5"]
    (dead,) = run.seen(MessageDeadLettered)
    assert dead.message_id == "3"


class Speechless(Exception):
    def __str__(self) -> str:
        return str(self.args[5])


async def test_an_error_that_cannot_tell_its_words_becomes_a_dead_letter(place: MemoryStage) -> None:
    async def fail(context: Context) -> None:
        if context.message_id == "1":
            raise Speechless

    for number in range(3):
        place.append(number)
    async with place.run(Write(fail)) as run:
        await place.until_written(run, 2)
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    (dead,) = run.seen(MessageDeadLettered)
    assert dead.message_id == "1"


async def killed(session: AsyncSession, place: MemoryStage) -> None:
    """End the session's connection behind its back."""
    number = await session.scalar(text("SELECT pg_backend_pid()"))
    await place.database.run(lambda other: other.execute(text(f"SELECT pg_terminate_backend({number})")))
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_connection_lost_within_a_task_group_is_no_attempt(
    place: MemoryStage, postgres: PostgresServer, database: str, driver: str
) -> None:
    done: list[str] = []

    async def in_a_group(context: Context) -> None:
        if not done:
            done.append(context.message_id)
            await killed(context.session, place)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(0))
            tasks.create_task(ask(context))

    async def ask(context: Context) -> Any:
        return await context.session.scalar(text("SELECT 1"))

    place.append(1)
    place.url = postgres.url(database, driver)
    async with place.run(Write(in_a_group, retry=Retry(attempts=1))) as run:
        await place.until_written(run, 1)
    assert run.seen(Trouble)
    assert not run.seen(AttemptFailed)


async def commit_connection(session: AsyncSession) -> None:
    await (await session.connection()).commit()


async def end_on_driver(session: AsyncSession, how: str) -> None:
    raw = await (await session.connection()).get_raw_connection()
    assert raw.driver_connection is not None
    await getattr(raw.driver_connection, how)()


ENDS: dict[str, Callable[[AsyncSession], Awaitable[None]]] = {
    "connection": commit_connection,
    "driver-commit": partial(end_on_driver, how="commit"),
    "driver-rollback": partial(end_on_driver, how="rollback"),
}


@pytest.mark.parametrize("fails", [True, False], ids=["then-fails", "and-goes-on"])
@pytest.mark.parametrize("how", ENDS)
async def test_a_transaction_that_a_handler_ended_loses_no_message(place: MemoryStage, how: str, fails: bool) -> None:
    async def end(context: Context) -> None:
        if context.message_id == "3":
            await context.session.flush()
            await ENDS[how](context.session)
            if fails:
                raise ValueError

    for number in range(8):
        place.append(number)
    async with place.run(Write(end, retry=Retry(attempts=1))) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    written = [one.message_id for one in await place.lines()]
    dead = {one.message_id for one in run.seen(MessageDeadLettered)}
    assert len(written) == len(set(written))
    assert set(written) | dead == {str(number) for number in range(8)}
    if how != "driver-commit":
        assert dead == {"3"}
        assert "3" not in written


class Base(DeclarativeBase): ...


class Counter(Base):
    """What all messages of a test add one to."""

    __tablename__ = "counters"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


async def add_one(session: AsyncSession, _number: int) -> None:
    counter = await session.get_one(Counter, 1)
    counter.value += 1


async def after_expire_all(session: AsyncSession, number: int) -> None:
    session.expire_all()
    await add_one(session, number)


async def after_expire(session: AsyncSession, number: int) -> None:
    session.expire(await session.get_one(Counter, 1))
    await add_one(session, number)


async def after_expunge_all(session: AsyncSession, number: int) -> None:
    session.expunge_all()
    await add_one(session, number)


async def past_the_autoflush(session: AsyncSession, number: int) -> None:
    with session.no_autoflush:
        query = select(Counter).with_for_update().execution_options(populate_existing=True)
        counter = (await session.scalars(query)).one()
    counter.value += 1


async def past_the_session(session: AsyncSession, number: int) -> None:
    if number % 2:
        connection = await session.connection()
        await connection.execute(text("UPDATE counters SET value = value + 1"))
    else:
        await add_one(session, number)


async def own_change_first(session: AsyncSession, number: int) -> None:
    await add_one(session, number)
    session.expunge_all()  # this drops only this message's own change
    await add_one(session, number)


WAYS = [after_expire_all, after_expire, after_expunge_all, past_the_autoflush, past_the_session, own_change_first]


@pytest.mark.parametrize("autoflush", [True, False], ids=["autoflush", "no-autoflush"])
@pytest.mark.parametrize("way", WAYS)
async def test_no_message_loses_what_others_of_its_group_have_not_flushed(
    place: MemoryStage, way: Callable[[AsyncSession, int], Awaitable[None]], autoflush: bool
) -> None:
    await place.database.run(lambda session: Base.metadata.create_all(session.connection()))
    await place.database.run(lambda session: session.add(Counter(id=1, value=0)))

    async def change(context: Context) -> None:
        await way(context.session, int(context.message_id))

    for number in range(12):
        place.append(number)
    engine = create_async_engine(place.url)
    sessions = async_sessionmaker(engine, autoflush=autoflush)
    async with place.run(Write(change, retry=Retry(attempts=1)), database=sessions) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    await engine.dispose()
    counted = await place.database.run(lambda session: session.get_one(Counter, 1).value)
    assert counted == 12
    assert max(run.groups()) > 1  # some of them shared a transaction; how many, the machine's pace decides
    assert not run.seen(AttemptFailed)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_database_that_does_not_answer_a_handler_in_time_is_no_attempt(
    place: MemoryStage, postgres: PostgresServer, database: str, driver: str
) -> None:
    done: list[str] = []

    async def ask(context: Context) -> None:
        await asyncio.sleep(0.05)  # so that our deadline comes before the server's
        if not done:
            done.append(context.message_id)
            await context.session.execute(text("SELECT pg_sleep(20)"))

    place.append(1)
    place.url = postgres.url(database, driver)
    async with place.run(Write(ask, retry=Retry(attempts=1)), transaction_timeout=1.0) as run:
        await place.until_written(run, 1)
    assert run.seen(Trouble)
    assert not run.seen(AttemptFailed)


async def test_a_handler_that_takes_too_long_by_itself_is_one(place: MemoryStage) -> None:
    async def sleep(context: Context) -> None:
        await context.session.execute(text("SELECT 1"))
        await asyncio.sleep(20)

    place.append(1)
    async with place.run(Write(sleep, retry=Retry(attempts=1)), transaction_timeout=1.0) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    assert [one.attempt for one in run.seen(AttemptFailed)] == [1]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_what_a_trigger_says_of_a_value_is_in_no_log(
    place: MemoryStage, postgres: PostgresServer, database: str, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    speaking = """DO $$ BEGIN RAISE unique_violation USING MESSAGE = 'card 4111-1111 is known'; END $$"""

    async def speak(context: Context) -> None:
        await context.session.execute(text(speaking))

    place.append(1)
    place.url = postgres.url(database, driver)
    async with place.run(Write(speak, retry=Retry(attempts=1))) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    assert run.seen(MessageDeadLettered)
    assert "23505" in caplog.text
    assert "4111" not in caplog.text + repr(run.events)


async def test_a_plain_handler_that_fails_after_the_grace_tells_no_log_what_it_failed_on(
    place: MemoryStage, caplog: pytest.LogCaptureFixture
) -> None:
    reached = threading.Event()

    class Late(Plain):
        def handle(self, event: bytes, context: Context[Session]) -> None:
            reached.set()
            time.sleep(1.5)
            raise ValueError("card 4111-1111")

    place.append(1)
    async with place.run(Late(), grace=0.1) as run:
        await run.until(reached.is_set, "the handler runs")
    gc.collect()
    await asyncio.sleep(0.1)
    assert "4111" not in caplog.text


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_value_of_a_type_that_no_operator_takes_is_its_messages_fault(
    place: MemoryStage, postgres: PostgresServer, database: str, driver: str
) -> None:
    async def compare(context: Context) -> None:
        number = int(context.message_id)
        bound = number if number == 1 else str(number)
        await context.session.execute(text("SELECT 1 FROM lines WHERE message_id = :bound"), {"bound": bound})

    for number in range(3):
        place.append(number)
    place.url = postgres.url(database, driver)
    async with place.run(Write(compare, retry=Retry(attempts=1))) as run:
        await place.until_written(run, 2)
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    assert [dead.message_id for dead in run.seen(MessageDeadLettered)] == ["1"]


async def ask_another_database() -> None:
    engine = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    async with engine.connect():
        raise AssertionError("no server listens there")


async def ask_within_a_savepoint(session: AsyncSession) -> None:
    async with session.begin_nested():
        await session.execute(text("SELECT 1 FROM what_not_every_installation_has"))


@pytest.mark.parametrize("where", ["another-database", "savepoint"])
async def test_a_reject_is_a_reject_whatever_error_it_answers(place: MemoryStage, where: str) -> None:
    async def reject(context: Context) -> None:
        if context.message_id == "1":
            try:
                await (
                    ask_another_database() if where == "another-database" else ask_within_a_savepoint(context.session)
                )
            except DBAPIError as error:
                raise Reject("not here") from error

    for number in range(3):
        place.append(number)
    async with place.run(Write(reject)) as run:
        await place.until_written(run, 2)
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    (dead,) = run.seen(MessageDeadLettered)
    assert (dead.message_id, dead.reason) == ("1", Reason.REJECTED)


async def test_a_reject_that_answers_a_lost_connection_is_none(place: MemoryStage) -> None:
    done: list[str] = []

    async def reject(context: Context) -> None:
        if done:
            return
        done.append(context.message_id)
        await killed(context.session, place)
        try:
            await context.session.execute(text("SELECT 1"))
        except DBAPIError as error:
            raise Reject("gone") from error

    place.append(1)
    async with place.run(Write(reject)) as run:
        await place.until_written(run, 1)
    assert run.seen(Trouble)
    assert not run.seen(MessageDeadLettered)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_server_that_is_silent_at_begin_is_left(
    place: MemoryStage, postgres: PostgresServer, database: str, driver: str
) -> None:
    """The proxy looks for COMMIT, and finds it in BEGIN ISOLATION LEVEL READ COMMITTED, too: every second one here."""
    where = urlsplit(postgres.admin_dsn)
    assert where.hostname is not None
    assert where.port is not None
    silent: list[int] = []
    runs: list[Run] = []

    def plan(number: int) -> Lose:
        if runs and runs[0].seen(WorkerStarted) and len(silent) < 2:
            silent.append(number)
            return "silence"
        return "nothing"

    for number in range(20):
        place.append(number)
    async with CommitProxy(f"{where.hostname}:{where.port}", plan) as proxy:
        place.url = f"postgresql+{driver}://postgres@127.0.0.1:{proxy.port}/{database}"
        async with place.run(Write(batch_size=1), transaction_timeout=1.0) as run:
            runs.append(run)
            found = await place.until_written(run, 20)
            await run.until(lambda: place.committed() == place.ends(), "all is committed")
    assert proxy.lost == 2
    assert sorted(int(one.message_id) for one in found) == list(range(20))
    assert not run.seen(AttemptFailed)
