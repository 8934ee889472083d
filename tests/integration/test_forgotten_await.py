"""A call on the session that was never awaited fails the message: its change is missing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from consumerkit import Context, Retry, message_status, outbox
from consumerkit.events import MessageDeadLettered
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import MemoryStage, Write, opened
from tests.integration.stage import Run

pytestmark = [
    # Python warns about it as well.
    pytest.mark.filterwarnings("ignore:coroutine .*was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*was never awaited:pytest.PytestUnraisableExceptionWarning"),
]
CALLS: dict[str, Callable[[Context], Any]] = {
    "execute": lambda context: context.session.execute(text("DELETE FROM lines")),
    "scalars": lambda context: context.session.scalars(text("SELECT 1")),
    "flush": lambda context: context.session.flush(),
    "run_sync": lambda context: context.session.run_sync(lambda _: None),
    "a task": lambda context: asyncio.create_task(context.session.execute(text("DELETE FROM lines"))),
    "publish": lambda context: outbox.publish(context.session, "elsewhere", value=b"v"),
    "status": lambda context: message_status(context.session, "write", "9"),
}


@pytest.fixture(params=["sqlite", "psycopg", "asyncpg"])
async def place(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[MemoryStage]:
    async with opened(fresh_url(request, tmp_path, sqlite="sqlite+aiosqlite"), partitions=1) as made:
        yield made


async def test_each_forgotten_await_fails_its_message_alone(place: MemoryStage) -> None:
    calls = dict(enumerate(CALLS.values(), 1))
    left: list[Any] = []

    async def forget(context: Context) -> None:
        await context.session.execute(text("SELECT 1"))
        if (number := int(context.message_id)) in calls:
            left.append(calls[number](context))

    for number in range(len(calls) + 2):
        place.append(number)
    async with place.run(Write(forget, retry=Retry(attempts=1))) as run:
        found = await place.until_written(run, 2)
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    for one in left:
        if asyncio.iscoroutine(one):
            one.close()
    # It may still have run in the transaction that was rolled back, or been refused after it.
    await asyncio.gather(*(one for one in left if isinstance(one, asyncio.Task)), return_exceptions=True)
    assert [one.message_id for one in found] == ["0", str(len(calls) + 1)]
    assert dead(run) == [(str(number), "consumerkit.errors.AwaitForgotten") for number in calls]


async def test_it_is_told_where_it_was_forgotten(place: MemoryStage) -> None:
    async def setup(_event: bytes, session: AsyncSession) -> None:
        session.execute(text("SELECT 1"))  # type: ignore[unused-coroutine]

    handler = Write(retry=Retry(attempts=1), session_setup=setup)
    place.append(1)
    async with place.run(handler) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    query = select(DEFAULT_TABLES.dead_letters.c.error)
    (told,) = await place.database.run(lambda session: session.scalars(query).all())
    assert told == "session_setup called session.execute() without await, so nothing was done; await each call"
    assert handler.seen == []


def dead(run: Run) -> list[tuple[str, str]]:
    return [(one.message_id or "", one.error) for one in run.seen(MessageDeadLettered)]
