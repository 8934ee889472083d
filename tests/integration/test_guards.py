"""Guarded changes of state and upserts, on every database and driver, alone and beside another transaction."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, String, UniqueConstraint, create_engine, select, update
from sqlalchemy.exc import MultipleResultsFound
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from consumerkit import Transition, transition, upsert
from consumerkit.storage.database import Database
from tests.services import PostgresServer


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "guarded_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str] = mapped_column(default="alice")
    status: Mapped[str] = mapped_column(default="pending")
    note: Mapped[str | None]


class Versioned(Base):
    __tablename__ = "guarded_versioned"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column("state", default="pending")
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's own form


class Price(Base):
    __tablename__ = "guarded_prices"
    id: Mapped[int] = mapped_column(primary_key=True)
    shop: Mapped[str] = mapped_column("shop_name", String(20))
    sku: Mapped[str]
    cents: Mapped[int]
    revision: Mapped[int] = mapped_column(default=0)
    __table_args__ = (UniqueConstraint("shop_name", "sku"),)


class Desk:
    """Calls the same function through a coroutine session or a plain one."""

    def __init__(self, session: AsyncSession | Session) -> None:
        self.session = session

    async def run(self, work: Callable[[Session], Any]) -> Any:
        return await self.session.run_sync(work) if isinstance(self.session, AsyncSession) else work(self.session)

    async def transition(self, *arguments: Any, **options: Any) -> Transition:
        if isinstance(self.session, AsyncSession):
            return await transition(self.session, *arguments, **options)
        return transition(self.session, *arguments, **options)

    async def upsert(self, *arguments: Any, **options: Any) -> Any:
        if isinstance(self.session, AsyncSession):
            return await upsert(self.session, *arguments, **options)
        return upsert(self.session, *arguments, **options)


DRIVERS = ["psycopg", "psycopg in coroutines", "asyncpg", "pysqlite", "aiosqlite"]


@pytest.fixture(params=DRIVERS)
async def desk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Desk]:
    if "sqlite" in request.param:
        url = f"sqlite:///{tmp_path}/guards.db"
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        url = postgres.url(request.getfixturevalue("database"))
        url = url.replace("+psycopg", "+asyncpg") if request.param == "asyncpg" else url
    database = Database(url)
    coroutines = request.param not in ("psycopg", "pysqlite")
    sessions = database.async_sessions if coroutines else database.sync_sessions
    assert sessions is not None
    session = sessions()
    desk = Desk(session)
    await desk.run(lambda sync: Base.metadata.create_all(sync.connection()))
    await desk.run(Session.commit)
    yield desk
    closed = session.close()
    if closed is not None:
        await closed
    await database.dispose()


async def _place(desk: Desk, *rows: Base) -> None:
    await desk.run(lambda session: session.add_all(rows))
    await desk.run(Session.flush)


async def test_a_transition_applies_once_and_says_what_it_found(desk: Desk) -> None:
    await _place(desk, Order(id=1), Order(id=2, status="cancelled"))

    async def pay(number: int) -> Transition:
        return await desk.transition(
            Order.status, before={"pending"}, after="paid", where=Order.id == number, values={"note": "thanks"}
        )

    assert await pay(1) is Transition.APPLIED
    assert await pay(1) is Transition.ALREADY
    assert await pay(2) is Transition.REFUSED
    assert await pay(3) is Transition.MISSING
    rows = await desk.run(lambda session: session.execute(select(Order.status, Order.note).order_by(Order.id)).all())
    assert [tuple(row) for row in rows] == [("paid", "thanks"), ("cancelled", None)]


async def test_a_transition_sees_and_changes_what_the_session_holds(desk: Desk) -> None:
    order = Order(id=1, status="draft")
    await _place(desk, order)
    order.status = "pending"  # not flushed yet
    assert (
        await desk.transition(Order.status, before={"pending"}, after="paid", where=Order.id == 1) is Transition.APPLIED
    )
    assert order.status == "paid"


async def test_a_transition_moves_the_version_of_its_row(desk: Desk) -> None:
    row = Versioned(id=1)
    await _place(desk, row)
    await desk.transition(Versioned.status, before={"pending"}, after="paid", where=Versioned.id == 1)
    assert await desk.run(lambda session: session.scalar(select(Versioned.version))) == 2
    row.status = "sent"
    await desk.run(Session.flush)
    assert await desk.run(lambda session: session.scalar(select(Versioned.version))) == 3


async def test_a_condition_that_names_several_rows_fails(desk: Desk) -> None:
    await _place(desk, Order(id=1), Order(id=2))
    with pytest.raises(MultipleResultsFound, match="names 2 rows"):
        await desk.transition(Order.status, before={"pending"}, after="paid", where=Order.customer == "alice")
    with pytest.raises(MultipleResultsFound, match="names 2 rows"):
        await desk.transition(Order.status, before={"packed"}, after="paid", where=Order.customer == "alice")


@pytest.mark.parametrize(
    "before, after, values, said",
    [
        (set(), "paid", {}, "states before"),
        ("pending", "paid", {}, "states before"),
        ({"paid"}, "paid", {}, "also among the states before"),
        ({"pending"}, "paid", {"notes": 1}, "did you mean 'note'"),
    ],
)
def test_a_transition_that_makes_no_sense_is_refused(before: Any, after: str, values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        transition(Session(), Order.status, before=before, after=after, where=Order.id == 1, values=values)


def _engine(postgres: PostgresServer, database: str) -> Engine:
    engine = create_engine(postgres.url(database))
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Order(id=1))
    return engine


def _pay(session: Session) -> Transition:
    return transition(session, Order.status, before={"pending"}, after="paid", where=Order.id == 1)


def _until_it_waits(engine: Engine) -> None:
    blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with engine.connect() as watching:
        while not watching.exec_driver_sql(blocked).scalar_one():
            watching.rollback()


def test_of_two_transactions_one_applies_and_the_other_finds_it_done(postgres: PostgresServer, database: str) -> None:
    engine = _engine(postgres, database)
    found: list[Transition] = []

    def second() -> None:
        with Session(engine) as session, session.begin():
            found.append(_pay(session))

    with Session(engine) as first:
        assert _pay(first) is Transition.APPLIED
        other = threading.Thread(target=second)
        other.start()
        _until_it_waits(engine)
        first.commit()
        other.join()
    assert found == [Transition.ALREADY]
    engine.dispose()


def test_a_row_that_becomes_ready_between_the_two_statements_is_moved(postgres: PostgresServer, database: str) -> None:
    engine = _engine(postgres, database)
    with Session(engine) as setting, setting.begin():
        setting.execute(update(Order).values(status="draft"))
    with Session(engine) as first:
        first.execute(update(Order).values(status="pending"))
        found: list[Transition] = []

        def second() -> None:
            with Session(engine) as session, session.begin():
                # Its UPDATE does not see what is not committed; its lock waits for it.
                found.append(_pay(session))

        other = threading.Thread(target=second)
        other.start()
        _until_it_waits(engine)
        first.commit()
        other.join()
    assert found == [Transition.APPLIED]
    engine.dispose()


async def test_an_upsert_inserts_and_then_changes(desk: Desk) -> None:
    values = {"shop": "north", "sku": "tea", "cents": 100}
    made = await desk.upsert(Price, values, on=["shop", "sku"])
    again = await desk.upsert(Price, {**values, "cents": 120}, on=["shop", "sku"])
    assert made is again
    assert (again.cents, again.revision) == (120, 0)
    added = await desk.upsert(
        Price, values, on=["shop", "sku"], change=lambda new: {"cents": Price.cents + new.cents, "revision": 1}
    )
    assert (added.cents, added.revision) == (220, 1)
    assert await desk.run(lambda session: len(session.scalars(select(Price)).all())) == 1


async def test_an_upsert_keeps_a_row_that_its_condition_protects(desk: Desk) -> None:
    async def offer(cents: int, revision: int) -> Any:
        values = {"shop": "north", "sku": "tea", "cents": cents, "revision": revision}
        return await desk.upsert(Price, values, on=["shop", "sku"], where=lambda new: Price.revision < new.revision)

    assert (await offer(100, 2)).cents == 100
    assert await offer(50, 1) is None
    assert (await offer(120, 3)).cents == 120


async def test_an_upsert_of_nothing_but_a_key_returns_the_row(desk: Desk) -> None:
    first = await desk.upsert(Order, {"id": 7}, on=["id"], change=lambda _: {})
    assert await desk.upsert(Order, {"id": 7}, on=["id"], change=lambda _: {}) is first


async def test_an_upsert_counts_versions(desk: Desk) -> None:
    rows = [await desk.upsert(Versioned, {"id": 1, "status": "pending"}, on=["id"]) for _ in range(3)]
    assert rows[0] is rows[2]
    assert rows[2].version == 3
    rows[2].status = "paid"
    await desk.run(Session.flush)


@pytest.mark.parametrize(
    "values, on, said",
    [
        ({"shop": "a", "sku": "b", "cents": 1}, ["sku"], "is no unique key of guarded_prices"),
        ({"shop": "a", "cents": 1}, ["shop", "sku"], "`on` names sku, which the values lack"),
        ({"shop": "a", "sku": "b", "cent": 1}, ["shop", "sku"], "did you mean 'cents'"),
        ({"shop": "a"}, [], "nothing is no unique key"),
    ],
)
def test_an_upsert_that_makes_no_sense_is_refused(values: Any, on: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        upsert(Session(), Price, values, on=on)


async def test_a_hundred_upserts_at_once_add_up(postgres: PostgresServer, database: str) -> None:
    engine = create_async_engine(postgres.url(database), pool_size=8)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    async def add(cents: int) -> None:
        async with AsyncSession(engine) as session, session.begin():
            values = {"shop": "north", "sku": "tea", "cents": cents}
            await upsert(
                session, Price, values, on=["shop", "sku"], change=lambda new: {"cents": Price.cents + new.cents}
            )

    await asyncio.gather(*map(add, range(100)))
    async with AsyncSession(engine) as session:
        assert (await session.scalars(select(Price.cents))).all() == [sum(range(100))]
    await engine.dispose()
