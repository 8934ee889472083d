"""Work that a handler leaves to a task or thread without waiting is refused once the handler has returned."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from consumerkit import BatchContext, BatchHandler, Context, Handler, Received, Retry, fixed, header
from consumerkit.errors import SessionOver
from tests.integration.memory_stage import TOPIC, Line, MemoryStage, Write, line, opened
from tests.services import PostgresServer


@pytest.fixture
async def place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    async with opened(postgres.url(database), partitions=1) as made:
        yield made


def left(name: str) -> Line:
    return Line(message_id=f"left {name}", partition=0, offset=0)


def executes(session: Session) -> None:
    session.execute(text("INSERT INTO lines (message_id, partition, \"offset\") VALUES ('left', 0, 0)"))


def adds(session: Session) -> None:
    session.add(left("behind"))
    session.flush()


def begins(session: Session) -> None:
    with session.begin():
        executes(session)


def nests(session: Session) -> None:
    with session.begin_nested():
        executes(session)


def connects(session: Session) -> None:
    session.connection().execute(text("INSERT INTO lines (message_id, partition, \"offset\") VALUES ('left', 0, 0)"))


def goes_on(session: Session) -> None:
    for _ in range(3):
        try:
            executes(session)
            session.commit()
        except SessionOver:
            continue
    executes(session)


WAYS: list[Callable[[Session], None]] = [executes, adds, begins, nests, connects, goes_on]


@pytest.mark.parametrize("way", WAYS)
async def test_a_task_that_writes_after_its_handler_is_refused(
    place: MemoryStage, way: Callable[[Session], None]
) -> None:
    over = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def leave(context: Context) -> None:
        async def later() -> None:
            await over.wait()
            await context.session.run_sync(way)

        if context.message_id == "1":
            tasks.append(asyncio.create_task(later()))

    place.append(1)
    async with place.run(Write(leave)) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
        over.set()
        (error,) = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(error, SessionOver)
        assert "'write'" in str(error)
        assert "\n" not in str(error)
        # Nothing of it holds a connection, or comes into another message's transaction.
        place.append(2)
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
        busy = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = current_database()"
        for _ in range(600):
            if not await place.database.run(lambda session: session.scalar(text(busy))):
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("a connection is left in a transaction")
    assert [one.message_id for one in await place.lines()] == ["1", "2"]


class Threads(Handler[bytes]):
    """Leaves a thread behind, which writes and publishes later."""

    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=1)

    def __init__(self) -> None:
        self.over = threading.Event()
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def handle(self, event: bytes, context: Context[Session]) -> None:
        context.session.add(line(context))

        def later() -> None:
            self.over.wait()
            try:
                adds(context.session)
            except SessionOver as error:
                self.errors.append(error)
            try:
                context.publish("x", value=b"y")
            except SessionOver as error:
                self.errors.append(error)

        self.threads.append(threading.Thread(target=later))
        self.threads[-1].start()


async def test_a_thread_that_writes_after_its_handler_is_refused(place: MemoryStage) -> None:
    handler = Threads()
    place.append(1)
    async with place.run(handler) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
        handler.over.set()
        await asyncio.to_thread(handler.threads[0].join)
        assert ["write" in str(error) for error in handler.errors] == [True, True]
    assert [one.message_id for one in await place.lines()] == ["1"]


class Batch(BatchHandler[bytes]):
    name = "write"
    topic = TOPIC
    message_id = header("id")

    def __init__(self, contexts: list[Any]) -> None:
        self.contexts = contexts

    async def handle_batch(self, events: Sequence[Received[bytes]], context: BatchContext) -> None:
        self.contexts.append(context)


@pytest.mark.parametrize("kind", ["each", "batch", "failed"])
async def test_what_is_published_after_the_handler_is_refused(place: MemoryStage, kind: str) -> None:
    contexts: list[Any] = []

    async def keep(context: Context) -> None:
        # While its group is still open: it must not go out in another message's name.
        if contexts:
            with pytest.raises(SessionOver, match=r"publish\('x'\)"):
                contexts[-1].publish("x", value=b"late")
        contexts.append(context)
        if kind == "failed":
            raise ValueError

    for number in range(3):
        place.append(number)
    handler = Batch(contexts) if kind == "batch" else Write(keep, retry=Retry(attempts=1, wait=fixed(0)))
    async with place.run(handler) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    assert contexts
    for context in contexts:
        with pytest.raises(SessionOver, match="'write'"):
            context.publish("x", value=b"late")
