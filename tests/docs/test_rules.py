"""The rules for a handler in `docs/concepts.md`: what is refused, what fails the message, and what is allowed."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from consumerkit import Context, Handler, Retry, Worker, header
from consumerkit.storage import schema
from consumerkit.transports.memory import Memory, MemoryBroker
from tests.services import PostgresServer

Act = Callable[[AsyncSession], Awaitable[object]]


class Base(DeclarativeBase): ...


class Effect(Base):
    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)


class Actor(Handler[bytes]):
    name = "act"
    topic = "acts"
    message_id = header("message-id")
    retry = Retry(attempts=1)

    def __init__(self, act: Act) -> None:
        self.act = act

    async def handle(self, event: bytes, context: Context) -> None:
        context.session.add(Effect())
        await context.session.flush()
        await self.act(context.session)


async def _outcome(url: str, act: Act) -> tuple[int, list[str]]:
    """Handle one message; return how many effects there are, and the reasons of dead letters."""
    broker = MemoryBroker(topics={"acts": 1})
    broker.append("acts", b"", headers=(("message-id", b"m-1"),))
    worker = Worker(database=url, kafka=Memory(broker), handlers=[Actor(act)])

    def make(session: Session) -> None:
        schema.apply(session)
        Base.metadata.create_all(session.connection())

    def look(session: Session) -> tuple[int, list[str]]:
        reasons = session.scalars(select(worker.tables.dead_letters.c.reason)).all()
        return session.scalars(select(func.count(Effect.id))).one(), list(reasons)

    await worker.database.run(make)
    async with asyncio.timeout(120), worker:
        while 1 not in broker.committed("act").values():  # noqa: ASYNC110 - the broker has no event to wait for
            await asyncio.sleep(0.02)
        return await worker.database.run(look)


async def _swallow(session: AsyncSession) -> None:
    with suppress(DBAPIError):
        await session.execute(text("SELECT 1 / 0"))


async def _swallow_in_a_savepoint(session: AsyncSession) -> None:
    with suppress(DBAPIError):
        async with session.begin_nested():
            await session.execute(text("SELECT 1 / 0"))


async def _commit_and_swallow(session: AsyncSession) -> None:
    with suppress(Exception):
        await session.commit()


@pytest.mark.parametrize(
    "act",
    [
        lambda session: session.commit(),
        lambda session: session.rollback(),
        lambda session: session.close(),
        lambda session: session.execute(text("COMMIT")),
        lambda session: session.execute(text("ROLLBACK")),
        _commit_and_swallow,
        _swallow,
    ],
    ids=["commit", "rollback", "close", "COMMIT", "ROLLBACK", "commit, and its error swallowed", "a swallowed error"],
)
async def test_what_ends_or_breaks_the_transaction_fails_the_message(
    act: Act, postgres: PostgresServer, database: str
) -> None:
    assert await _outcome(postgres.url(database), act) == (0, ["exhausted"])


async def test_a_statement_that_fails_in_a_savepoint_may_be_swallowed(postgres: PostgresServer, database: str) -> None:
    assert await _outcome(postgres.url(database), _swallow_in_a_savepoint) == (1, [])
