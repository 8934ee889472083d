"""`once` and `checkpoints` on every database and driver: alone, twice at once, and after a crash."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Select, Table, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, join, mapped_column, outerjoin, sessionmaker

from consumerkit import ConfigurationError, MessageState, message_status
from consumerkit.errors import InProgress, KeyReused, StartError, TransactionMisused
from consumerkit.jobs import checkpoints, once
from consumerkit.maintenance.pruner import Forgotten, forget
from consumerkit.storage import consumers
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.maintenance.pruning import PruneStatements
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.services import PostgresServer
from tests.services.tables import make_tables


class Base(DeclarativeBase): ...


class Effect(Base):
    """Append-only and without a unique key: a repeated effect shows twice."""

    __tablename__ = "job_effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


class Order(Base):
    __tablename__ = "job_orders"
    shop: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None]


THEIRS: Any = aliased(Effect)
OTHER: Any = Effect.__table__.alias()
HAS, OWN = Effect.id == Order.number, THEIRS.id == Order.number
WITHIN: Any = select(Effect).subquery()
OF_LINES: Any = aliased(Effect, select(Effect).select_from(outerjoin(Order, Effect, HAS)).subquery())
LEFT_OUT: Any = [
    (select(Order, Effect).outerjoin(Effect, HAS), Effect.id),
    (select(Order, THEIRS).outerjoin(THEIRS, OWN), THEIRS.id),
    (select(Order).select_from(outerjoin(Order, Effect, HAS, full=True)), Effect.id),
    (select(Order).select_from(outerjoin(Effect, Order, HAS, full=True)), Effect.id),
    (select(Order).select_from(outerjoin(Order, join(Effect, THEIRS, Effect.id == THEIRS.id), HAS)), THEIRS.id),
    (select(Order, OTHER).select_from(outerjoin(Order, OTHER, OTHER.c.id == Order.number)), OTHER.c.id),
    (select(OF_LINES), OF_LINES.id),
]
"""Queries, and keys on the optional side of an outer join in them."""

SERVED = ["psycopg", "psycopg in coroutines", "asyncpg"]
DRIVERS = [*SERVED, "pysqlite", "aiosqlite"]


class Place:
    """A database with our tables, as a user's own engine opens it."""

    def __init__(self, url: str, *, coroutines: bool) -> None:
        # SQLite's writers wait as long as their connection says; the tests set no pace.
        patient: dict[str, Any] = {"timeout": 240} if "sqlite" in url else {}
        plain = url.replace("+asyncpg", "+psycopg").replace("+aiosqlite", "")
        self.sync = create_engine(plain, connect_args=patient)
        self.coroutines = create_async_engine(url, connect_args=patient) if coroutines else None
        with Session(self.sync) as session, session.begin():
            make_tables(session)
            Base.metadata.create_all(session.connection())

    def session(self) -> AsyncSession | Session:
        if self.coroutines is not None:
            return async_sessionmaker(self.coroutines)()
        return sessionmaker(self.sync)()

    async def once(
        self, body: Callable[[Session, bool], object], *key: Any, begin: bool = False, **options: Any
    ) -> bool:
        """Run a block, as a script would; within `session.begin()` where asked for."""
        session = self.session()
        if isinstance(session, AsyncSession):
            async with session, session.begin() if begin else nullcontext(), once(session, *key, **options) as first:
                await session.run_sync(body, first)
            return first
        return await asyncio.to_thread(self._plain, session, body, key, begin, options)

    @staticmethod
    def _plain(session: Session, body: Any, key: Any, begin: bool, options: Any) -> bool:
        with session, session.begin() if begin else nullcontext(), once(session, *key, **options) as first:
            body(session, first)
        return first

    async def fill(self, body: Callable[[Session, Any], object], *arguments: Any, **options: Any) -> None:
        """Run a backfill, as a script would."""
        session = self.session()
        if isinstance(session, AsyncSession):
            async with session:
                async for batch in checkpoints(session, *arguments, **options):
                    await session.run_sync(body, batch)
        else:
            await asyncio.to_thread(self._fill, session, body, arguments, options)

    @staticmethod
    def _fill(session: Session, body: Any, arguments: Any, options: Any) -> None:
        with session:
            for batch in checkpoints(session, *arguments, **options):
                body(session, batch)

    def effects(self) -> list[str]:
        with Session(self.sync) as session:
            return list(session.scalars(select(Effect.what).order_by(Effect.what)))

    def enter(self, *rows: Base) -> None:
        with Session(self.sync) as session, session.begin():
            session.add_all(rows)

    def status(self, *id: str) -> Any:
        with Session(self.sync) as session:
            return message_status(session, *id)

    async def close(self) -> None:
        self.sync.dispose()
        if self.coroutines is not None:
            await self.coroutines.dispose()


async def _place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    name, _, coroutines = request.param.partition(" in ")
    if "sqlite" in name:
        url = f"sqlite{'+aiosqlite' if name == 'aiosqlite' else ''}:///{tmp_path}/jobs.sqlite"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.url(request.getfixturevalue("database"), name)
    made = Place(url, coroutines=bool(coroutines) or name in ("asyncpg", "aiosqlite"))
    yield made
    await made.close()


@pytest.fixture(params=DRIVERS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async for made in _place(request, tmp_path):
        yield made


@pytest.fixture(params=SERVED)
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async for made in _place(request, tmp_path):
        yield made


@pytest.fixture(params=["pysqlite"])
async def file(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async for made in _place(request, tmp_path):
        yield made


class Crash(Exception): ...


def invoice(session: Session, first: bool) -> None:
    if first:
        session.add(Effect(what="invoice"))


def crash(session: Session, first: bool) -> None:
    invoice(session, first)
    session.flush()
    raise Crash


async def test_a_block_takes_effect_once_for_each_key(place: Place) -> None:
    for name, begin in (("commits", False), ("within", True)):
        firsts = [await place.once(invoice, name, day, begin=begin) for day in ("24", "24", "25", "24")]
        assert firsts == [True, False, True, False]
        assert place.status(f"job:{name}", "24").state is MessageState.PROCESSED
    assert place.effects() == ["invoice"] * 4


async def test_a_block_that_raises_leaves_nothing_and_its_key_free(place: Place) -> None:
    for name, begin in (("commits", False), ("within", True)):
        for _ in range(2):
            with pytest.raises(Crash):
                await place.once(crash, name, "24", begin=begin)
        assert place.status(f"job:{name}", "24").state is MessageState.UNKNOWN
        assert await place.once(invoice, name, "24", begin=begin)
    assert place.effects() == ["invoice"] * 2


async def test_a_block_within_a_transaction_goes_with_it_and_alone_where_it_raises(place: Place) -> None:
    def work(session: Session, fails: bool) -> None:
        with session.begin():
            session.add(Effect(what="outer"))
            for body in (crash, invoice):
                with suppress(Crash), once(session, "invoices", "24") as first:
                    body(session, first)
            if fails:
                session.flush()
                raise Crash

    for fails in (True, False):
        with suppress(Crash), Session(place.sync) as session:
            work(session, fails)
    assert place.effects() == ["invoice", "outer"]


async def test_of_two_at_once_one_has_the_key_and_the_other_waits_for_it(place: Place) -> None:
    together = asyncio.Barrier(2)

    async def run() -> bool:
        await together.wait()
        return await place.once(invoice, "invoices", "24")

    for _ in range(5):  # the very first run makes the job's name, too
        assert sorted(await asyncio.gather(run(), run())) in ([False, True], [False, False])
    assert place.effects() == ["invoice"]


async def test_who_does_not_wait_is_told_that_the_key_is_in_use(served: Place) -> None:
    with Session(served.sync) as holder, once(holder, "invoices", "24") as first:
        assert first
        for begin in (False, True):
            with pytest.raises(InProgress, match="job:invoices: another transaction is at the key 24"):
                await served.once(invoice, "invoices", "24", wait=0, begin=begin)
        if served.coroutines is None:
            holder.execute(text("SELECT 1"))
        assert await served.once(invoice, "reminders", "24", wait=0)
    assert not await served.once(invoice, "invoices", "24", wait=0)


async def test_the_limit_of_a_wait_ends_with_it(served: Place) -> None:
    found: list[str] = []
    await served.once(lambda session, _: found.append(session.scalar(text("SHOW lock_timeout")) or ""), "a", 1, wait=3)
    assert found == ["0"]


async def test_a_server_that_ends_the_connection_leaves_the_key_free(served: Place) -> None:
    def lose(session: Session, first: bool) -> None:
        invoice(session, first)
        session.flush()
        number = session.scalar(text("SELECT pg_backend_pid()"))
        with served.sync.connect() as other:
            assert other.scalar(text("SELECT pg_terminate_backend(:number)"), {"number": number})

    with pytest.raises(DBAPIError):
        await served.once(lose, "invoices", "24")
    assert served.effects() == []
    assert await served.once(invoice, "invoices", "24")
    assert served.effects() == ["invoice"]


async def test_an_error_that_was_swallowed_is_not_committed_as_done(served: Place) -> None:
    def swallow(session: Session, first: bool) -> None:
        invoice(session, first)
        session.flush()
        with suppress(DBAPIError):
            session.execute(text("SELECT 1 / 0"))

    with pytest.raises(DBAPIError):
        await served.once(swallow, "invoices", "24")
    assert served.effects() == []
    assert await served.once(invoice, "invoices", "24")


async def test_a_block_that_ends_the_transaction_fails(place: Place) -> None:
    def undo(session: Session, first: bool) -> None:
        invoice(session, first)
        session.rollback()

    def undo_and_go_on(session: Session, first: bool) -> None:
        undo(session, first)
        session.add(Effect(what="after"))

    with pytest.raises(TransactionMisused, match="committed or rolled back the session"):
        await place.once(undo_and_go_on, "invoices", "24")
    with pytest.raises(TransactionMisused, match="committed or rolled back the session"):
        await place.once(undo, "invoices", "24", begin=True)
    assert place.effects() == []


async def test_a_block_that_commits_keeps_neither_its_key_nor_its_changes(place: Place) -> None:
    """The rest of the block would be lost, because the next run finds the key."""

    def commit_and_go_on(session: Session, first: bool) -> None:
        invoice(session, first)
        session.commit()
        session.add(Effect(what="after"))

    def begin_anew(session: Session, first: bool) -> None:
        session.rollback()
        invoice(session, first)
        session.commit()

    for body in (commit_and_go_on, begin_anew):
        with pytest.raises(TransactionMisused, match="committed or rolled back the session"):
            await place.once(body, "invoices", "24")
        assert place.effects() == []
    assert await place.once(invoice, "invoices", "24")


def test_a_block_within_a_block_is_committed_with_it(tmp_path: Path) -> None:
    place = Place(f"sqlite:///{tmp_path}/jobs.sqlite", coroutines=False)
    with suppress(Crash), Session(place.sync) as session, once(session, "outer", "24"):
        with once(session, "inner", "24") as first:
            invoice(session, first)
        raise Crash
    assert place.effects() == []
    for expected in (True, False):
        with Session(place.sync) as session, once(session, "outer", "24") as first:
            if first:
                with once(session, "inner", "24") as also_first:
                    invoice(session, also_first)
        assert first is expected
    assert place.effects() == ["invoice"]
    place.sync.dispose()


async def test_a_key_that_comes_with_another_fingerprint_is_refused(place: Place) -> None:
    assert await place.once(invoice, "invoices", "24", fingerprint={"shop": "a", "day": 1})
    assert not await place.once(invoice, "invoices", "24", fingerprint={"day": 1, "shop": "a"})
    assert not await place.once(invoice, "invoices", "24")
    with pytest.raises(KeyReused, match="the key 24 was used before for something else"):
        await place.once(invoice, "invoices", "24", fingerprint={"shop": "b"})
    assert place.effects() == ["invoice"]


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        (("", "24"), {}, "use up to 200 letters"),
        (("in voices", "24"), {}, "use up to 200 letters"),
        (("invoices",), {}, "at least one part"),
        (("invoices", ""), {}, "none of them empty"),
        (("invoices", 1.5), {}, "a float is no key"),
        (("invoices", "24"), {"wait": -1}, "0 or more"),
        (("invoices", "24"), {"wait": 1}, "cannot be kept on SQLite"),
        (("invoices", "24"), {"fingerprint": object()}, "the fingerprint"),
    ],
)  # fmt: skip
async def test_what_cannot_be_kept_is_refused(file: Place, arguments: Any, options: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        await file.once(invoice, *arguments, **options)


async def test_a_session_in_autocommit_is_refused_and_keeps_no_key(served: Place) -> None:
    engine = served.sync.execution_options(isolation_level="AUTOCOMMIT")
    with Session(engine) as session, pytest.raises(ConfigurationError, match="autocommit"):
        once(session, "invoices", "24").__enter__()
    assert served.status("job:invoices", "24").state is MessageState.UNKNOWN


async def test_keys_of_jobs_are_forgotten_only_where_their_name_is_given(file: Place) -> None:
    assert await file.once(invoice, "invoices", "24")
    database = Database(str(file.sync.url))
    pruning = PruneStatements(DEFAULT_TABLES, dialect_for("sqlite", DEFAULT_TABLES))
    assert await database.run(lambda session: pruning.plans(session, 0.0, unpositioned=True)) == []
    [plan] = await database.run(lambda session: pruning.plans(session, -60.0, ["job:invoices"]))
    assert await forget(database.run, pruning, plan) == Forgotten(1, complete=True)
    assert await file.once(invoice, "invoices", "24")
    await database.dispose()


async def test_jobs_and_handlers_do_not_share_a_name(file: Place) -> None:
    with Session(file.sync) as session, session.begin():
        session.execute(text(
            "INSERT INTO consumerkit_consumers (name, group_name, topics) VALUES ('job:a', 'g', '[\"t\"]')"
        ))  # fmt: skip
    with pytest.raises(ConfigurationError, match="'job:a' is the name of a handler"):
        await file.once(invoice, "a", 1)
    assert await file.once(invoice, "b", 1)
    with Session(file.sync) as session, pytest.raises(StartError, match="'job:b': this name has keys of jobs"):
        consumers.bind(session, DEFAULT_TABLES, name="job:b", group="b", topics=["t"], adopt=True)


ORDERS: Select[Any] = select(Order)
KEY = (Order.shop, Order.number)


def orders(count: int = 25) -> list[Order]:
    return [Order(shop="ab"[number % 2], number=number) for number in range(count)]


def touch(session: Session, batch: Any) -> None:
    session.add_all(Effect(what=f"{order.shop}{order.number}") for order in batch)
    for order in batch:
        order.note = "touched"


def names(count: int = 25) -> list[str]:
    return sorted(f"{order.shop}{order.number}" for order in orders(count))


async def test_a_backfill_handles_each_row_once_and_then_what_is_new(place: Place) -> None:
    place.enter(*orders())
    sizes: list[int] = []

    def see(session: Session, batch: Any) -> None:
        touch(session, batch)
        sizes.append(len(batch))

    await place.fill(see, "touch", ORDERS, key=KEY, batch_size=10)
    assert (sizes, place.effects()) == ([10, 10, 5], names())
    assert place.status("backfill:touch", "checkpoint").result["finished"]
    await place.fill(see, "touch", ORDERS, key=KEY, batch_size=10)
    assert len(sizes) == 3
    place.enter(Order(shop="c", number=1))
    await place.fill(see, "touch", ORDERS, key=KEY, batch_size=10)
    assert place.effects() == [*names(), "c1"]
    assert place.status("backfill:touch", "checkpoint").result["rows"] == 26


async def test_a_backfill_that_crashes_goes_on_behind_its_last_commit(place: Place) -> None:
    place.enter(*orders())
    for batches in range(3):
        left = [batches]

        def fail(session: Session, batch: Any, left: list[int] = left) -> None:
            touch(session, batch)
            session.flush()
            if not left[0]:
                raise Crash
            left[0] -= 1

        with pytest.raises(Crash):
            await place.fill(fail, "touch", ORDERS, key=KEY, batch_size=4)
    assert len(place.effects()) == 12
    await place.fill(touch, "touch", ORDERS, key=KEY, batch_size=4)
    assert place.effects() == names()


async def test_two_backfills_at_once_share_the_rows(place: Place) -> None:
    place.enter(*orders())
    together = asyncio.Barrier(2)

    async def run() -> None:
        await together.wait()
        await place.fill(touch, "touch", ORDERS, key=KEY, batch_size=2)

    await asyncio.gather(run(), run())
    assert place.effects() == names()


async def test_a_batch_is_committed_by_the_loop_alone(place: Place) -> None:
    place.enter(*orders())

    def end(how: Callable[[Session], None]) -> Callable[[Session, Any], None]:
        def body(session: Session, batch: Any) -> None:
            touch(session, batch)
            how(session)

        return body

    with pytest.raises(TransactionMisused, match="the loop commits each batch"):
        await place.fill(end(Session.commit), "touch", ORDERS, key=KEY)
    with pytest.raises(TransactionMisused, match="committed or rolled back"):
        await place.fill(end(Session.rollback), "touch", ORDERS, key=KEY)
    assert place.effects() == []

    def nested(session: Session, batch: Any) -> None:
        with session.begin_nested():
            touch(session, batch)

    await place.fill(nested, "touch", ORDERS, key=KEY, batch_size=10)
    assert place.effects() == names()


async def test_a_batch_of_several_columns_is_one_of_rows(file: Place) -> None:
    file.enter(*orders(3))
    seen: list[Any] = []
    query: Any = select(Order.note, Order.number)
    await file.fill(lambda _, batch: seen.extend(batch), "look", query, key=KEY, batch_size=2)
    assert [(row.number, len(row)) for row in seen] == [(0, 2), (2, 2), (1, 2)]


async def test_the_rate_is_kept_between_transactions(file: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    file.enter(*orders())
    moments, slept = [100.0], []

    def sleep(seconds: float) -> None:
        with Session(file.sync) as other, other.begin():  # a writer has its turn
            other.execute(text("UPDATE job_orders SET note = note"))
        slept.append(seconds)
        moments[0] += seconds

    monkeypatch.setattr("consumerkit.jobs.batches.time.monotonic", lambda: moments[0])
    monkeypatch.setattr("consumerkit.jobs.batches.time.sleep", sleep)
    await file.fill(touch, "touch", ORDERS, key=KEY, batch_size=10, rate=5)
    assert slept == [0, 2, 2, 1]


async def test_a_terminal_sees_how_far_a_backfill_has_come(
    file: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.enter(*orders())
    await file.fill(touch, "first", ORDERS, key=KEY)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    await file.fill(touch, "again", ORDERS, key=KEY, progress=False)
    assert capsys.readouterr().err == ""
    await file.fill(touch, "second", ORDERS, key=KEY, batch_size=10)
    assert "25/25" in capsys.readouterr().err


@pytest.mark.parametrize(
    "query, options, words",
    [
        (select(Order).order_by(Order.number), {"key": KEY}, "has an ORDER BY"),
        (select(Order).limit(3), {"key": KEY}, "has a LIMIT"),
        (select(Order).offset(3), {"key": KEY}, "has an OFFSET"),
        (select(Order).with_for_update(skip_locked=True), {"key": KEY}, "has SKIP LOCKED"),
        (select(Order), {"key": Order.number}, r"key=\(number\) is not unique in job_orders"),
        (select(Order), {"key": (*KEY, Order.note)}, "note may be null"),
        (select(Order), {"key": ()}, "give the key as a column"),
        (select(Order), {"key": (*KEY, Effect.id)}, "of one table"),
        (select(Order), {"key": KEY, "batch_size": 0}, "batch_size=0"),
        (select(Order), {"key": KEY, "rate": 0}, "rate=0"),
        (select(func.count()), {"key": func.count()}, "columns of a table, or mapped attributes"),
        (select(WITHIN), {"key": WITHIN.c.id}, "columns of a table, or mapped attributes"),
    ],
)  # fmt: skip
async def test_a_backfill_that_would_pass_rows_over_is_refused(
    file: Place, query: Any, options: Any, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        await file.fill(touch, "touch", query, **options)


@pytest.mark.parametrize("size", [1, 4, 10])
async def test_a_backfill_whose_query_repeats_a_key_is_refused(place: Place, size: int) -> None:
    """A page that ended between two rows of one key would skip the second one."""
    place.enter(*orders(4), Effect(what="first"), Effect(what="second"))
    seen: list[Any] = []
    joined: Any = select(Order, Effect).join(Effect, Effect.id > 0)
    with pytest.raises(ConfigurationError, match=r"several rows with one key \(job_orders.shop, job_orders.number\)"):
        await place.fill(lambda _, batch: seen.extend(batch), "touch", joined, key=KEY, batch_size=size)
    assert seen == []


@pytest.mark.parametrize("query, key", LEFT_OUT)
async def test_a_backfill_whose_join_may_leave_its_key_null_is_refused(place: Place, query: Any, key: Any) -> None:
    """PostgreSQL sorts null last: after the first page such rows would never be behind the key."""
    place.enter(*orders(6), *(Effect(what=str(number)) for number in range(4)))
    with pytest.raises(ConfigurationError) as refused:
        await place.fill(lambda *_: None, "touch", query, key=key, batch_size=2)
    assert str(refused.value) == (
        "backfill:touch: an outer join of the query may leave the key (job_effects.id) null, and such rows would be "
        "skipped; give the key of a table that each row has, or use an inner join"
    )


async def test_a_backfill_over_a_join_by_a_key_that_each_row_has_takes_each_row(place: Place) -> None:
    place.enter(*orders(6), *(Effect(what=str(number)) for number in range(4)))
    taken: list[Any] = []
    for name, joined, key in (
        ("outer", select(Order, Effect).outerjoin(Effect, HAS), KEY),
        ("inner", select(Order, THEIRS).join(THEIRS, OWN), THEIRS.id),
        ("nested", select(Order, Effect).join(Effect, HAS).outerjoin(THEIRS, THEIRS.id < 0), Effect.id),
        ("table", select(OTHER).select_from(OTHER.outerjoin(Effect, OTHER.c.id == -Effect.id)), OTHER.c.id),
    ):
        taken.clear()
        await place.fill(lambda _, batch: taken.extend(batch), name, joined, key=key, batch_size=2, progress=False)
        assert len(taken) == (6 if name == "outer" else 4), name


async def test_a_row_without_a_key_is_refused_where_a_view_hides_the_join(file: Place) -> None:
    file.enter(*orders(2))
    with file.sync.begin() as connection:
        connection.execute(
            text("CREATE VIEW hidden AS SELECT e.id FROM job_orders o LEFT JOIN job_effects e ON e.id = o.number")
        )
    hidden = Table("hidden", MetaData(), Column("id", Integer, primary_key=True))
    with pytest.raises(ConfigurationError, match=r"may leave the key \(hidden.id\) null"):
        await file.fill(touch, "touch", select(hidden), key=hidden.c.id)


async def test_a_backfill_is_refused_another_key_and_another_s_transaction(file: Place) -> None:
    file.enter(*orders())
    await file.fill(touch, "touch", ORDERS, key=KEY)
    with pytest.raises(ConfigurationError, match=r"by \(job_orders.shop, job_orders.number\) and cannot go on by"):
        await file.fill(touch, "touch", ORDERS, key=(Order.number, Order.shop))
    with Session(file.sync) as session, session.begin(), pytest.raises(ConfigurationError, match="of its own"):
        next(checkpoints(session, "touch", ORDERS, key=KEY))


def test_threads_share_a_job_on_a_plain_engine(tmp_path: Path) -> None:
    place = Place(f"sqlite:///{tmp_path}/jobs.sqlite", coroutines=False)
    together = threading.Barrier(4)
    firsts: list[bool] = []

    def run() -> None:
        together.wait()
        with Session(place.sync) as session, once(session, "invoices", "24") as first:
            invoice(session, first)
        firsts.append(first)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sorted(firsts), place.effects()) == ([False, False, False, True], ["invoice"])
    place.sync.dispose()
