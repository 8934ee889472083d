"""A coroutine waits for its session or for something outside; each case runs in a transaction of a real server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import copy_context
from typing import Any, Final

import pytest
from sqlalchemy import Integer, Text, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.util import await_only

from consumerkit import Context, Handler, header
from consumerkit.engine.transaction.fresh_context import in_context
from consumerkit.engine.transaction.guard import guard
from consumerkit.engine.transaction.outside_waits import watch
from consumerkit.engine.transaction.sharing import Sharing
from consumerkit.events import OutsideWaitNoticed
from consumerkit.handlers.declaration import declare
from tests.services import PostgresServer

Case = Callable[[AsyncSession], Awaitable[object]]
SHORT: Final = 0.002
OUTSIDE: Final[dict[str, Case]] = {}
WITHIN: Final[dict[str, Case]] = {}
UNSEEN: Final[dict[str, Case]] = {}


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "case_rows"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text)


class Waiting(Handler[bytes]):
    name = "wait"
    topic = "t"
    message_id = header("id")

    async def handle(self, event: bytes, context: Context) -> None: ...


def outside(case: Case) -> Case:
    OUTSIDE[case.__name__] = case
    return case


def within(case: Case) -> Case:
    WITHIN[case.__name__] = case
    return case


def unseen(case: Case) -> Case:
    UNSEEN[case.__name__] = case
    return case


async def driver_of(session: AsyncSession) -> Any:
    return (await (await session.connection()).get_raw_connection()).driver_connection


async def ask(session: AsyncSession, sql: str = "SELECT 1") -> Any:
    return (await session.execute(text(sql))).scalar()


async def nothing() -> None: ...


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 hello\r\n")
    while await reader.readline():
        writer.write(b"250 OK\r\n")
    writer.close()


# Something outside is waited for.


@outside
async def sleep(session: AsyncSession) -> None:
    await asyncio.sleep(SHORT)


@outside
async def sleep_between_statements(session: AsyncSession) -> None:
    await ask(session)
    await asyncio.sleep(SHORT)
    await ask(session)


@outside
async def sleep_in_a_savepoint(session: AsyncSession) -> None:
    async with session.begin_nested():
        await ask(session)
        await asyncio.sleep(SHORT)


@outside
async def sleep_between_rows_of_a_stream(session: AsyncSession) -> None:
    rows = await session.stream(text("SELECT generate_series(1, 3)").execution_options(yield_per=1))
    async for _ in rows:
        await asyncio.sleep(SHORT)


@outside
async def sleep_after_a_failed_statement(session: AsyncSession) -> None:
    with pytest.raises(DBAPIError):
        async with session.begin_nested():
            await ask(session, "SELECT 1 / 0")
    await asyncio.sleep(SHORT)


@outside
async def sleep_in_a_transaction_that_is_aborted(session: AsyncSession) -> None:
    with pytest.raises(DBAPIError):
        await ask(session, "SELECT 1 / 0")
    await asyncio.sleep(SHORT)


@outside
async def sleep_under_run_sync(session: AsyncSession) -> None:
    await session.run_sync(lambda _: await_only(asyncio.sleep(SHORT)))


@outside
async def sleep_with_a_limit(session: AsyncSession) -> None:
    await asyncio.wait_for(asyncio.sleep(SHORT), 60)


@outside
async def sleep_that_is_cut_off(session: AsyncSession) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SHORT):
            await asyncio.sleep(60)


@outside
async def sleep_in_a_task(session: AsyncSession) -> None:
    await asyncio.create_task(asyncio.sleep(SHORT))


@outside
async def sleep_in_a_shield(session: AsyncSession) -> None:
    await asyncio.shield(asyncio.sleep(SHORT))


@outside
async def sleeps_at_once(session: AsyncSession) -> None:
    await asyncio.gather(asyncio.sleep(SHORT), asyncio.sleep(SHORT))


@outside
async def sleeps_in_a_group(session: AsyncSession) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(SHORT))
        group.create_task(nothing())


@outside
async def generator_that_sleeps(session: AsyncSession) -> None:
    async def ticks() -> AsyncIterator[int]:
        await asyncio.sleep(SHORT)
        yield 1

    async for _ in ticks():
        pass


@outside
async def awaitable_of_its_own(session: AsyncSession) -> None:
    class Pause:
        def __await__(self) -> Any:
            return asyncio.sleep(SHORT).__await__()

    await Pause()


@outside
async def thread(session: AsyncSession) -> None:
    await asyncio.to_thread(time.sleep, SHORT)


@outside
async def process(session: AsyncSession) -> None:
    made = await asyncio.create_subprocess_exec("true")
    await made.wait()


@outside
async def queue(session: AsyncSession) -> None:
    made: asyncio.Queue[int] = asyncio.Queue()
    asyncio.get_running_loop().call_later(SHORT, made.put_nowait, 1)
    await made.get()


@outside
async def lock_that_is_held(session: AsyncSession) -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_later(SHORT, lock.release)
    await lock.acquire()


@outside
async def stream_of_a_socket(session: AsyncSession) -> None:
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for line in (b"HELO\r\n", b"MAIL\r\n"):
            await reader.readline()
            writer.write(line)
        writer.close()
        await writer.wait_closed()


@outside
async def protocol_that_answers_at_once(session: AsyncSession) -> None:
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)
            self.transport.close()

    async with await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"one\n")
        await reader.readline()
        writer.close()
        await writer.wait_closed()


@outside
async def second_session(session: AsyncSession) -> None:
    async with AsyncSession(session.bind) as other:
        await other.execute(text("SELECT 1"))


@outside
async def second_engine(session: AsyncSession) -> None:
    assert isinstance(session.bind, AsyncEngine)
    engine = create_async_engine(session.bind.url)
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await engine.dispose()


@outside
async def second_connection_of_the_driver(session: AsyncSession) -> None:
    assert isinstance(session.bind, AsyncEngine)
    url = session.bind.url.set(drivername="postgresql").render_as_string(hide_password=False)
    if session.bind.driver == "asyncpg":
        import asyncpg  # type: ignore[import-untyped]

        connection = await asyncpg.connect(url)
        await connection.fetch("SELECT 1")
    else:
        import psycopg

        connection = await psycopg.AsyncConnection.connect(url)
        await connection.execute("SELECT 1")
    await connection.close()


# The session is waited for, or nothing is.


@within
async def nothing_at_all(session: AsyncSession) -> None: ...


@within
async def one_turn_of_the_loop(session: AsyncSession) -> None:
    await asyncio.sleep(0)


@within
async def statement(session: AsyncSession) -> None:
    await ask(session)


@within
async def slow_statement(session: AsyncSession) -> None:
    await ask(session, "SELECT pg_sleep(0.15)")  # longer than a driver waits at once


@within
async def large_answer(session: AsyncSession) -> None:
    await ask(session, "SELECT repeat('x', 4000000)")


@within
async def large_question(session: AsyncSession) -> None:
    await session.execute(text("SELECT length(CAST(:it AS text))"), {"it": "x" * 8_000_000})


@within
async def unit_of_work(session: AsyncSession) -> None:
    session.add(Row(id=1, name="one"))
    await session.flush()
    row = await session.get_one(Row, 1, with_for_update=True)
    row.name = "two"
    await session.flush()
    await session.refresh(row)
    await session.delete(row)
    await session.flush()


@within
async def many_rows(session: AsyncSession) -> None:
    await session.execute(insert(Row), [{"id": number, "name": "x"} for number in range(100, 3100)])


@within
async def many_statements(session: AsyncSession) -> None:
    changes = [{"it": number, "name": "y"} for number in range(200)]
    await session.execute(text("UPDATE case_rows SET name = :name WHERE id = :it"), changes)


@within
async def stream(session: AsyncSession) -> None:
    rows = await session.stream(text("SELECT generate_series(1, 300)").execution_options(yield_per=100))
    async for _ in rows:
        await asyncio.sleep(0)


@within
async def run_sync(session: AsyncSession) -> None:
    await session.run_sync(lambda plain: plain.scalars(select(Row).limit(3)).all())


@within
async def savepoints(session: AsyncSession) -> None:
    async with session.begin_nested(), session.begin_nested() as inner:
        await ask(session)
        await inner.rollback()


@within
async def failed_statement(session: AsyncSession) -> None:
    with pytest.raises(DBAPIError):
        async with session.begin_nested():
            await ask(session, "SELECT 1 / 0")
    await ask(session)


@within
async def free_lock(session: AsyncSession) -> None:
    async with asyncio.Lock():
        await ask(session)


@within
async def statement_with_a_limit(session: AsyncSession) -> None:
    await asyncio.wait_for(ask(session), 60)
    async with asyncio.timeout(60):
        await ask(session)


@within
async def statement_in_a_task(session: AsyncSession) -> None:
    await asyncio.create_task(ask(session))


@within
async def statement_in_a_shield(session: AsyncSession) -> None:
    await asyncio.shield(ask(session))


@within
async def statements_at_once(session: AsyncSession) -> None:
    lock = asyncio.Lock()

    async def one() -> None:
        async with lock:
            await ask(session)

    await asyncio.gather(one(), one(), nothing())


@within
async def statement_in_a_group(session: AsyncSession) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(ask(session))


@within
async def stream_in_a_group(session: AsyncSession) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(stream(session))  # type: ignore[arg-type]


@within
async def nothing_with_a_limit(session: AsyncSession) -> None:
    await asyncio.wait_for(nothing(), 60)


@within
async def nothing_in_tasks(session: AsyncSession) -> None:
    await asyncio.create_task(nothing())
    await asyncio.gather(nothing(), nothing())
    async with asyncio.TaskGroup() as group:
        group.create_task(nothing())


@within
async def drivers_own_connection(session: AsyncSession) -> None:
    driver = await driver_of(session)
    if hasattr(driver, "fetch"):
        await driver.fetch("SELECT pg_sleep(0.002)")
        async for _ in driver.cursor("SELECT generate_series(1, 200)", prefetch=50):
            pass
    else:
        async with driver.pipeline():
            await driver.execute("SELECT 1")
            await driver.execute("SELECT pg_sleep(0.002)")
        async with driver.cursor() as cursor:
            async for _ in cursor.stream("SELECT generate_series(1, 200)"):
                pass


@within
async def copy_in(session: AsyncSession) -> None:
    driver = await driver_of(session)
    rows = [(number, "x" * 500) for number in range(10_000, 20_000)]
    if hasattr(driver, "fetch"):
        await driver.copy_records_to_table("case_rows", records=rows)
    else:
        async with driver.cursor() as cursor, cursor.copy("COPY case_rows FROM STDIN") as copy:
            for row in rows:
                await copy.write_row(row)


@within
async def copy_out(session: AsyncSession) -> None:
    driver = await driver_of(session)
    query = "SELECT generate_series(1, 20000)"
    if hasattr(driver, "fetch"):

        async def take(_data: bytes) -> None: ...

        await driver.copy_from_query(query, output=take)
    else:
        async with driver.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT") as copy:
            async for _ in copy:
                pass


# What the docs say is not seen.


@unseen
async def blocking_call(session: AsyncSession) -> None:
    time.sleep(SHORT)  # noqa: ASYNC251


@unseen
async def task_that_is_not_waited_for(session: AsyncSession) -> None:
    tasks.append(asyncio.create_task(asyncio.sleep(SHORT)))
    await ask(session)


@unseen
async def sleep_beside_a_statement(session: AsyncSession) -> None:
    await asyncio.gather(asyncio.sleep(SHORT), ask(session))


tasks: Final[list[asyncio.Task[None]]] = []


async def noticed(engine: AsyncEngine, case: Case) -> str | None:
    """Run a case in a transaction of its own; return where it was noticed."""
    seen: list[Any] = []
    sharing = Sharing(declare(Waiting()), seen.append)  # type: ignore[arg-type]
    async with AsyncSession(engine) as session:
        made = guard(session.sync_session)
        await ask(session)
        watched = watch(sharing, made, case)
        assert watched is not None
        await in_context(copy_context(), case, session, watch=watched)
        made.open = False
        await session.rollback()
    assert sharing.alone == bool(seen)
    if not seen:
        return None
    (event,) = seen
    assert isinstance(event, OutsideWaitNoticed)
    return event.place


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_wait_outside_is_told_from_one_for_the_session(
    postgres: PostgresServer, database: str, driver: str
) -> None:
    engine = create_async_engine(postgres.url(database, driver))
    try:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        found = {name: await noticed(engine, case) for name, case in (OUTSIDE | WITHIN | UNSEEN).items()}
        await asyncio.gather(*tasks)
    finally:
        tasks.clear()
        await engine.dispose()
    assert [name for name in OUTSIDE if found[name] is None] == []
    assert {name: found[name] for name in WITHIN | UNSEEN if found[name] is not None} == {}
    wrong = {name: found[name] for name in OUTSIDE if f" in {name}" not in str(found[name])}
    assert wrong == {}, "the line of the user's own code is told"
