"""A connection to SQLite that is given up releases the database's lock."""

import asyncio
import gc
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from consumerkit.storage.database import Database

SLOW = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) FROM n")


async def test_a_cancelled_transaction_keeps_nobody_from_writing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/shop.db")
    await database.run(lambda session: session.execute(text("CREATE TABLE lines (n INTEGER)")))

    def read_slowly(session: Session) -> None:
        session.execute(text("INSERT INTO lines VALUES (1)"))
        session.execute(SLOW)

    gc.disable()  # as in a worker, where it runs seldom
    try:
        reading = asyncio.create_task(database.run(read_slowly))
        await asyncio.sleep(0.1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        async with asyncio.timeout(120):
            await database.run(lambda session: session.execute(text("INSERT INTO lines VALUES (2)")))
        found = await database.run(lambda session: list(session.scalars(text("SELECT n FROM lines"))))
        assert found == [2]
    finally:
        gc.enable()
        await database.dispose()


async def test_a_cancellation_is_told_as_one_though_work_meets_the_broken_connection(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/shop.db")

    def read_and_tidy(session: Session) -> None:
        try:
            session.execute(SLOW)
        finally:
            session.execute(text("SELECT 1"))

    reading = asyncio.create_task(database.run(read_and_tidy))
    await asyncio.sleep(0.1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await database.dispose()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_no_moment_of_a_transaction_swallows_a_cancellation(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/shop.db")

    async def work_and_wait() -> None:
        await database.run(lambda session: session.execute(text("SELECT 1")))
        await asyncio.Event().wait()

    for turns in range(400):
        task = asyncio.create_task(work_and_wait())
        for _ in range(turns % 40):
            await asyncio.sleep(0 if turns % 3 else 0.0001)
        task.cancel()
        # Giving up a connection, and closing the session, take five seconds each where the thread does not answer.
        await asyncio.wait([task], timeout=60)
        assert task.done(), f"cancelled {task.cancelling()} times after {turns % 40} turns: {task.get_stack()}"
    await database.dispose()
    gc.collect()  # the driver's own connections that were cancelled while they opened: here, and not in another test


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_first_connection_that_is_cancelled_keeps_no_lock(tmp_path: Path) -> None:
    """SQLite locks the whole file while the journal's mode changes; the next connection waits for half a minute."""
    for number in range(60):
        database = Database(f"sqlite:///{tmp_path}/{number}.db")
        for turns in range(14):
            task = asyncio.create_task(database.run(lambda session: session.execute(text("SELECT 1"))))
            for _ in range(turns):
                await asyncio.sleep(0 if turns % 3 else 0.0001)
            task.cancel()
            await asyncio.wait([task], timeout=60)
            assert task.done(), f"round {number}, cancelled after {turns} turns: {task.get_stack()}"
        await database.dispose()
    gc.collect()
