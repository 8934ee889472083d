"""Sessions that would hold a second transaction: refused, whatever brings it about; on the broker in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from consumerkit import BatchContext, BatchHandler, Context, Handler, Received, Retry, fixed, header
from consumerkit.errors import ConfigurationError
from consumerkit.events import AttemptFailed, HandlerPaused, HandlerResumed, MessageDeadLettered
from consumerkit.handlers.handler import AnyHandler
from consumerkit.storage.database import Database
from tests.integration.memory_stage import TOPIC, Line, MemoryStage, Write, line, opened
from tests.services import PostgresServer

pytestmark = pytest.mark.every_variant


class Base(DeclarativeBase): ...


class Other(Base):
    """What lies in the second database."""

    __tablename__ = "others"

    id: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[str]


class Second:
    """The engine of the second database, for threads and for coroutines, and how often it began."""

    def __init__(self, url: str) -> None:
        self.threads = create_engine(url)
        self.coroutines = create_async_engine(url)
        self.began = 0
        for engine in (self.threads, self.coroutines.sync_engine):
            event.listen(engine, "begin", self._begin)

    def _begin(self, _: Connection) -> None:
        self.began += 1

    def of(self, session: Session) -> Engine:
        """The one for the kind of engine that a session has."""
        assert isinstance(session.bind, Engine)
        return self.coroutines.sync_engine if session.bind.dialect.is_async else self.threads


@pytest.fixture
async def place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    async with opened(postgres.url(database), partitions=1) as made:
        await made.database.run(lambda session: Base.metadata.create_all(session.connection()))
        yield made


@pytest.fixture
async def second(place: MemoryStage) -> AsyncIterator[Second]:
    made = Second(place.url)
    yield made
    await made.coroutines.dispose()
    made.threads.dispose()


Way = Callable[[Session, str], None]


class Ways:
    """What a handler does to come to the second database; each also writes there, if it can."""

    def __init__(self, second: Second) -> None:
        self.second = second
        self.broken = True

    def by_mapper(self, session: Session, name: str) -> None:
        session.add(Other(message_id=name))
        session.flush()

    def at_the_last_flush(self, session: Session, name: str) -> None:
        session.add(Other(message_id=name))

    def by_bind_mapper(self, session: Session, name: str) -> None:
        if self.broken:
            session.bind_mapper(Other, self.second.of(session))
        session.add(Other(message_id=name))
        session.flush()

    def only_reads(self, session: Session, _name: str) -> None:
        bind = self.second.of(session) if self.broken else session.get_bind()
        session.execute(text("SELECT 1"), bind_arguments={"bind": bind})

    def swallowed(self, session: Session, name: str) -> None:
        try:
            self.only_reads(session, name)
        except Exception:
            return

    def from_a_replica(self, session: Session, _name: str) -> None:
        session.scalars(select(Other)).all()

    def other_options(self, session: Session, _name: str) -> None:
        engine = session.get_bind().engine
        bind = engine.execution_options(logging_token="x") if self.broken else engine
        session.connection(bind_arguments={"bind": bind})

    def sessions(self, engine: AsyncEngine | Engine) -> Any:
        """A sessionmaker whose sessions send `Other` to the second database while it is broken."""
        ways = self

        class Routing(Session):
            def get_bind(self, mapper: Any = None, **rest: Any) -> Any:
                reads_other = "others" in str(rest.get("clause", ""))
                if ways.broken and ((mapper is not None and mapper.class_ is Other) or reads_other):
                    return ways.second.of(self)
                return super().get_bind(mapper, **rest)

        if isinstance(engine, AsyncEngine):
            return async_sessionmaker(engine, sync_session_class=Routing)
        return sessionmaker(engine, class_=Routing)


ALL = [
    "by_mapper",
    "at_the_last_flush",
    "by_bind_mapper",
    "only_reads",
    "swallowed",
    "from_a_replica",
    "other_options",
]


class Plain(Handler[bytes]):
    """Does in a thread what `way` says, for message 3."""

    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=1)

    def __init__(self, way: Way) -> None:
        self.way = way

    def handle(self, event: bytes, context: Context[Session]) -> None:
        context.session.add(line(context))
        if context.message_id == "3":
            self.way(context.session, "3")


def coroutine(way: Way) -> Write:
    async def before(context: Context) -> None:
        if context.message_id == "3":
            await context.session.run_sync(way, "3")

    return Write(before, retry=Retry(attempts=1))


async def pauses_and_goes_on(place: MemoryStage, ways: Ways, handler: AnyHandler, engine: AsyncEngine | Engine) -> None:
    """The messages before the one that needs a second transaction are done; it, and what follows, only once it may."""
    async with place.run(handler, database=ways.sessions(engine)) as run:
        await run.until(lambda: len(run.seen(HandlerPaused)) >= 2, "the pause")
        assert not await place.database.run(lambda session: session.scalars(select(Other)).all())
        assert "3" not in {one.message_id for one in await place.lines()}
        assert sum(place.committed().values()) <= 3
        readiness = run.worker.readiness()
        assert "paused" in str(readiness)
        assert "second transaction" in str(readiness)
        assert "\n" not in run.seen(HandlerPaused)[0].error
        ways.broken = False
        await run.until(lambda: place.committed() == place.ends(), "all is committed", within=60)
        await run.until(lambda: bool(run.seen(HandlerResumed)), "the resumption")
        assert "paused" not in str(run.worker.readiness())
    assert [one.message_id for one in await place.lines()] == [str(number) for number in range(6)]
    assert not run.seen(AttemptFailed)
    assert not run.seen(MessageDeadLettered)
    await asyncio.to_thread(engine.dispose) if isinstance(engine, Engine) else await engine.dispose()


@pytest.mark.parametrize("plain", [False, True], ids=["coroutine", "plain"])
@pytest.mark.parametrize("way", ALL)
async def test_a_second_transaction_pauses_the_handler(
    place: MemoryStage, second: Second, way: str, plain: bool
) -> None:
    ways = Ways(second)
    for number in range(6):
        place.append(number)
    engine: Any = create_engine(place.url) if plain else create_async_engine(place.url)
    make = Plain if plain else coroutine
    await pauses_and_goes_on(place, ways, make(getattr(ways, way)), engine)
    assert second.began or way == "other_options"


class Prefetches(Write):
    """Comes to the second database before any message is handled."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way

    async def prefetch(self, events: Sequence[bytes], session: AsyncSession) -> None:
        await session.run_sync(self.way, "prefetch")


class Batch(BatchHandler[bytes]):
    """Comes to the second database for the whole batch."""

    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=1)

    def __init__(self, way: Way) -> None:
        self.way = way

    async def handle_batch(self, events: Sequence[Received[bytes]], context: BatchContext) -> None:
        for one in events:
            message = one.message
            context.session.add(
                Line(message_id=one.message_id, key=message.key, partition=message.partition, offset=message.offset)
            )
        await context.session.run_sync(self.way, "batch")


class Told(Write):
    """Uses the second database in `on_duplicate`."""

    def __init__(self, way: Way) -> None:
        super().__init__(retry=Retry(attempts=1, wait=fixed(0)))
        self.way = way

    async def on_duplicate(self, event: bytes, result: object, context: Context) -> None:
        await context.session.run_sync(self.way, "told")


@pytest.mark.parametrize("kind", [Prefetches, Batch, Told])
async def test_a_second_transaction_pauses_whatever_part_of_the_handler_begins_it(
    place: MemoryStage, second: Second, kind: type[Prefetches | Batch | Told]
) -> None:
    ways = Ways(second)
    for number in (0, 1, 2, 3, 4, 4, 5):
        place.append(number)
    engine = create_async_engine(place.url)
    handler = kind(ways.by_mapper)
    async with place.run(handler, database=ways.sessions(engine)) as run:
        await run.until(lambda: len(run.seen(HandlerPaused)) >= 2, "the pause")
        assert not await place.database.run(lambda session: session.scalars(select(Other)).all())
        assert second.began
        ways.broken = False
        await run.until(lambda: place.committed() == place.ends(), "all is committed", within=60)
    assert [one.message_id for one in await place.lines()] == [str(number) for number in range(6)]
    assert not run.seen(AttemptFailed)
    await engine.dispose()


@pytest.mark.parametrize("concurrency", [4])
async def test_no_other_lane_goes_on_while_the_handler_is_paused(
    place: MemoryStage, second: Second, concurrency: int
) -> None:
    ways = Ways(second)
    place.append(3, key=b"bad")
    engine = create_async_engine(place.url)
    handler = coroutine(ways.by_mapper)
    handler.concurrency = concurrency
    async with place.run(handler, database=ways.sessions(engine)) as run:
        await run.until(lambda: bool(run.seen(HandlerPaused)), "the pause")
        for number in range(10, 30):
            place.append(number, key=b"%d" % number)
        await run.until(lambda: len(run.seen(HandlerPaused)) >= 4, "more tries")
        assert not await place.lines()
        ways.broken = False
        await place.until_written(run, 21)
    await engine.dispose()


class TwoPhase(Session):
    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.twophase = True


class Elsewhere(Session):
    """Asked without anything, it names another engine: a replica, say."""

    replica = create_engine("postgresql+psycopg://replica:secret@127.0.0.1:1/x")

    def get_bind(self, *_: Any, **__: Any) -> Engine:
        return self.replica


class Bound(Session):
    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.bind_mapper(Other, Elsewhere.replica)


class Needy(Session):
    def get_bind(self, *_: Any, **__: Any) -> Engine:
        raise LookupError("no tenant")


@pytest.mark.parametrize("coroutines", [True, False])
@pytest.mark.parametrize(
    "kind, told",
    [(TwoPhase, "twophase"), (Elsewhere, "get_bind"), (Bound, "other engines"), (Needy, "LookupError")],
)
def test_a_session_class_that_shows_it_is_refused_when_the_worker_is_built(
    kind: type[Session], told: str, coroutines: bool
) -> None:
    url = "postgresql+psycopg://user:secret@127.0.0.1:1/main"
    given: Any = (
        async_sessionmaker(create_async_engine(url), sync_session_class=kind)
        if coroutines
        else sessionmaker(create_engine(url), class_=kind)
    )
    with pytest.raises(ConfigurationError, match=told) as refused:
        Database(given)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)
