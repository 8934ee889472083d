"""The user's code around COMMIT: its errors say nothing about the transaction."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from consumerkit import Context, Handler, Retry, failpoints, fixed, header
from consumerkit.events import AttemptFailed, CommitsLost, HandlerPaused, MessageDeadLettered, PartitionInDoubt
from consumerkit.handlers.handler import AnyHandler
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import TOPIC, Line, MemoryStage, Write, line, opened
from tests.integration.stage import Run
from tests.services import PostgresServer

COUNT = 12


@pytest.fixture(params=["psycopg", "asyncpg", "sqlite"])
async def place(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[MemoryStage]:
    async with opened(fresh_url(request, tmp_path, sqlite="sqlite+aiosqlite"), partitions=1) as made:
        for number in range(COUNT):
            made.append(number)
        yield made


class Fired:
    """Counts how often a fault fired."""

    def __init__(self) -> None:
        self.times = 0

    def fire(self) -> None:
        self.times += 1


class Boom(Exception): ...


Hook = Callable[[type[Session], Fired], None]


def after_commit(kind: type[Session], fired: Fired) -> None:
    @event.listens_for(kind, "after_commit")
    def hook(_: Session) -> None:
        fired.fire()
        raise Boom("card 4111")


def after_commit_first(kind: type[Session], fired: Fired) -> None:
    @event.listens_for(kind, "after_commit", insert=True)
    def hook(_: Session) -> None:
        fired.fire()
        raise Boom


def after_commit_exits(kind: type[Session], fired: Fired) -> None:
    @event.listens_for(kind, "after_commit")
    def hook(_: Session) -> None:
        fired.fire()
        sys.exit(3)


def after_commit_cancels(kind: type[Session], fired: Fired) -> None:
    @event.listens_for(kind, "after_commit")
    def hook(_: Session) -> None:
        fired.fire()
        raise asyncio.CancelledError


def after_end(kind: type[Session], fired: Fired) -> None:
    @event.listens_for(kind, "after_transaction_end")
    def hook(session: Session, transaction: Any) -> None:
        if transaction.parent is None:
            fired.fire()
            raise Boom


def opens_another(kind: type[Session], fired: Fired) -> None:
    @event.listens_for(kind, "after_transaction_end")
    def hook(session: Session, transaction: Any) -> None:
        if transaction.parent is None and not session.info.get("again"):
            session.info["again"] = True
            fired.fire()
            session.execute(text("SELECT 1"))
            session.execute(text("SELECT what"))


def overridden(kind: type[Session], fired: Fired) -> None:
    def commit(self: Session) -> None:
        Session.commit(self)
        fired.fire()
        raise Boom

    kind.commit = commit  # type: ignore[method-assign]


def overridden_and_goes_on(kind: type[Session], fired: Fired) -> None:
    def commit(self: Session) -> None:
        Session.commit(self)
        fired.fire()
        self.execute(text("SELECT 1"))
        self.rollback()
        raise Boom

    kind.commit = commit  # type: ignore[method-assign]


def twice(kind: type[Session], fired: Fired) -> None:
    def commit(self: Session) -> None:
        fired.fire()
        Session.commit(self)
        Session.commit(self)

    kind.commit = commit  # type: ignore[method-assign]


def checked_in(kind: type[Session], fired: Fired) -> None:
    @event.listens_for(kind, "after_commit")
    def hook(session: Session) -> None:
        fired.fire()
        session.close()
        raise Boom


AFTER = [
    after_commit,
    after_commit_first,
    after_commit_exits,
    after_commit_cancels,
    after_end,
    opens_another,
    overridden,
    overridden_and_goes_on,
    twice,
    checked_in,
]


class Plain(Handler[bytes]):
    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=1, wait=fixed(0))

    def handle(self, event: bytes, context: Context[Session]) -> None:
        context.session.add(line(context))


def sessions(place: MemoryStage, *, plain: bool) -> tuple[type[Session], Any]:
    """A session class of the test's own, and a sessionmaker of it."""
    kind = type("Hooked", (Session,), {})
    if plain:
        engine = create_engine(place.url.replace("+asyncpg", "+psycopg").replace("+aiosqlite", "+pysqlite"))
        return kind, sessionmaker(engine, class_=kind)
    return kind, async_sessionmaker(create_async_engine(place.url), sync_session_class=kind)


async def disposed(maker: Any) -> None:
    engine = maker.kw["bind"]
    assert isinstance(engine, AsyncEngine | Engine)
    await engine.dispose() if isinstance(engine, AsyncEngine) else engine.dispose()


async def all_once(place: MemoryStage, run: Run, *, dead: tuple[str, ...] = ()) -> None:
    """All messages are committed, each effect is there once, and no attempt has failed."""
    await run.until(lambda: place.committed() == place.ends(), "all is committed", within=60)
    found = [one.message_id for one in await place.lines()]
    assert sorted(found, key=int) == [str(n) for n in range(COUNT) if str(n) not in dead]
    assert not run.seen(CommitsLost)
    assert [one.message_id for one in run.seen(MessageDeadLettered)] == list(dead)


@pytest.mark.parametrize(
    "place, plain, hook",
    [
        *(("psycopg", plain, hook) for plain in (False, True) for hook in AFTER),
        *((driver, False, hook) for driver in ("asyncpg", "sqlite") for hook in (after_commit, after_end, overridden)),
        ("sqlite", True, after_commit),
    ],
    indirect=["place"],
)
async def test_what_fails_after_commit_is_told_and_undoes_nothing(
    place: MemoryStage, hook: Hook, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    kind, maker = sessions(place, plain=plain)
    fired = Fired()
    hook(kind, fired)
    handler: AnyHandler = Plain() if plain else Write(retry=Retry(attempts=1))
    async with place.run(handler, database=maker) as run:
        await all_once(place, run)
        assert fired.times
        assert not run.seen(AttemptFailed)
        assert not run.seen(PartitionInDoubt)
        # The lane is where the database has it.
        place.append(99)
        await place.until_written(run, COUNT + 1)
    assert ("failed after COMMIT" in caplog.text) == (hook is not twice)
    assert "4111" not in caplog.text
    await disposed(maker)


@pytest.mark.parametrize("transaction", [1, 3], ids=["first", "later"])
async def test_an_error_between_commit_and_its_answer_holds_nothing_up(
    place: MemoryStage, transaction: int, caplog: pytest.LogCaptureFixture
) -> None:
    visits: list[str] = []

    def raise_once(name: str) -> None:
        if name == "commit_sent":
            visits.append(name)
            if len(visits) == transaction:
                raise Boom

    with failpoints.watched(raise_once):
        async with place.run(Write(retry=Retry(attempts=1), batch_size=3), database=place.url) as run:
            await all_once(place, run)
            assert len(run.seen(PartitionInDoubt)) == 1
            assert not run.seen(AttemptFailed)
    assert len(visits) > transaction, "the error did not come"
    assert "database trouble" not in caplog.text


@pytest.mark.parametrize("place", ["psycopg"], indirect=True)
async def test_a_listener_of_all_sessions_undoes_nothing_of_ours_either(place: MemoryStage) -> None:
    fired = Fired()

    def hook(_: Session) -> None:
        fired.fire()
        raise Boom

    engine = create_async_engine(place.url)
    async with place.run(Write(retry=Retry(attempts=1)), database=engine) as run:
        await place.until_written(run, COUNT)
        event.listen(Session, "after_commit", hook)
        try:
            place.append(98)
            place.append(99)
            await run.until(lambda: place.committed() == place.ends(), "all is committed")
        finally:
            event.remove(Session, "after_commit", hook)
        assert fired.times
        assert not run.seen(AttemptFailed)
        assert not run.seen(CommitsLost)
    await engine.dispose()


@pytest.mark.parametrize(
    "place, plain", [("psycopg", False), ("psycopg", True), ("asyncpg", False), ("sqlite", False)], indirect=["place"]
)
async def test_a_commit_that_does_not_commit_pauses_the_handler(place: MemoryStage, plain: bool) -> None:
    kind, maker = sessions(place, plain=plain)
    broken = [True]

    def commit(self: Session) -> None:
        if broken:
            self.flush()
        else:
            Session.commit(self)

    kind.commit = commit  # type: ignore[method-assign]
    handler: AnyHandler = Plain() if plain else Write(retry=Retry(attempts=1))
    async with place.run(handler, database=maker) as run:
        await run.until(lambda: len(run.seen(HandlerPaused)) > 1, "the pause")
        assert "super().commit()" in run.seen(HandlerPaused)[0].error
        assert not place.committed()
        broken.clear()
        await all_once(place, run)
        assert not run.seen(AttemptFailed)
    await disposed(maker)


def remember(kind: type[Session]) -> None:
    """Have sessions of a class remember which messages they have flushed."""

    @event.listens_for(kind, "after_flush")
    def flushed(session: Session, _: Any) -> None:
        ids = {one.message_id for one in session.new if isinstance(one, Line)}
        session.info.setdefault("ids", set()).update(ids)


def holds(session: Session, name: str) -> bool:
    return name in session.info.get("ids", ())


@pytest.mark.parametrize(
    "place, plain", [("psycopg", False), ("psycopg", True), ("asyncpg", False), ("sqlite", False)], indirect=["place"]
)
async def test_what_fails_before_commit_fails_the_message_that_it_fails_on(place: MemoryStage, plain: bool) -> None:
    kind, maker = sessions(place, plain=plain)
    fired = Fired()
    remember(kind)

    @event.listens_for(kind, "before_commit")
    def hook(session: Session) -> None:
        if holds(session, "3"):
            fired.fire()
            raise OSError("the auditor does not answer")

    handler: AnyHandler = Plain() if plain else Write(retry=Retry(attempts=1))
    async with place.run(handler, database=maker) as run:
        await all_once(place, run, dead=("3",))
        assert fired.times > 1
        assert not run.seen(PartitionInDoubt)
    await disposed(maker)


@pytest.mark.parametrize(
    "place, plain", [("psycopg", False), ("psycopg", True), ("asyncpg", False), ("sqlite", False)], indirect=["place"]
)
async def test_an_error_that_a_hook_before_commit_swallows_loses_nothing(place: MemoryStage, plain: bool) -> None:
    kind, maker = sessions(place, plain=plain)
    fired = Fired()
    remember(kind)

    @event.listens_for(kind, "before_commit")
    def hook(session: Session) -> None:
        if holds(session, "3"):
            fired.fire()
            try:
                session.execute(text("SELECT 1 / 0 FROM lines"))
                session.execute(text("INSERT INTO lines (message_id) VALUES (NULL)"))
            except Exception:
                return

    handler: AnyHandler = Plain() if plain else Write(retry=Retry(attempts=1))
    async with place.run(handler, database=maker) as run:
        # On SQLite a statement that fails leaves the transaction as it was.
        await all_once(place, run, dead=() if "sqlite" in place.url else ("3",))
        assert fired.times
    await disposed(maker)


@pytest.mark.parametrize("place", ["psycopg", "sqlite"], indirect=True)
async def test_a_listener_of_the_engine_that_fails_before_commit_is_sent_leaves_nothing_in_doubt(
    place: MemoryStage,
) -> None:
    engine = create_async_engine(place.url)
    fired = Fired()

    async with place.run(Write(retry=Retry(attempts=9)), database=engine) as run:
        await place.until_written(run, COUNT)

        @event.listens_for(engine.sync_engine, "commit")
        def hook(_: Any) -> None:
            fired.fire()
            if fired.times < 3:
                raise Boom

        place.append(99)
        await place.until_written(run, COUNT + 1)
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    assert fired.times >= 3
    found = [one.message_id for one in await place.lines()]
    assert len(found) == len(set(found)) == COUNT + 1
    assert not run.seen(CommitsLost)
    await engine.dispose()


async def test_a_session_that_cannot_be_closed_leaves_no_transaction_open(
    postgres: PostgresServer, database: str
) -> None:
    place = MemoryStage(postgres.url(database), partitions=1)
    await place.create_tables()
    for number in range(COUNT):
        place.append(number)
    kind, _ = sessions(place, plain=False)
    fired = Fired()

    def close(_: Session) -> None:
        fired.fire()
        raise Boom

    kind.close = close  # type: ignore[method-assign, assignment]
    engine = create_async_engine(place.url, pool_size=5, max_overflow=0)

    async def fail(context: Context) -> None:
        await context.session.flush()
        if context.message_id == "3":
            raise ValueError

    maker: Any = async_sessionmaker(engine, sync_session_class=kind, class_=AsyncSession)
    async with place.run(Write(fail, retry=Retry(attempts=1)), database=maker) as run:
        await all_once(place, run, dead=("3",))
        open_ones = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = current_database()"
        # The worker's own transactions come and go; one that a session has left open stays.
        deadline = asyncio.get_running_loop().time() + 60
        while await place.database.run(lambda session: session.scalar(text(open_ones))):
            assert asyncio.get_running_loop().time() < deadline, "a transaction was left open"
            await asyncio.sleep(0.1)
    assert fired.times > 2
    await engine.dispose()
    await place.close()
