"""A process that is frozen in a transaction keeps its locks only for a limited time: the server ends it."""

import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from consumerkit import Retry, fixed
from consumerkit.events import MessageDeadLettered, OffsetsCommitted
from consumerkit.operations.positions import PositionStore, skip
from consumerkit.storage.database import Database
from tests.integration.payments import TOPIC, PaymentStage, Trial
from tests.integration.test_statements import metered
from tests.services import PostgresServer

BOUND = "idle_in_transaction_session_timeout"
MAKERS: dict[str, Callable[[PostgresServer, str], Any]] = {
    "thread": lambda server, name: create_engine(server.url(name)),
    "psycopg": lambda server, name: create_async_engine(server.url(name)),
    "asyncpg": lambda server, name: create_async_engine(server.url(name, "asyncpg")),
}


@pytest.fixture(params=list(MAKERS))
async def given(request: pytest.FixtureRequest, postgres: PostgresServer, database: str) -> AsyncIterator[Any]:
    engine = MAKERS[request.param](postgres, database)
    yield engine
    disposed = engine.dispose()
    if disposed is not None:
        await disposed


async def test_the_server_ends_a_transaction_of_which_nothing_is_heard(
    given: Any, postgres: PostgresServer, database: str
) -> None:
    def freeze(session: Session) -> None:
        session.execute(text("SELECT pg_advisory_xact_lock(7)"))
        # Nothing of this process runs until another has got the lock.
        with psycopg.connect(postgres.dsn(database), autocommit=True) as other:
            end = time.monotonic() + 120
            while other.execute("SELECT pg_try_advisory_lock(7)").fetchone() != (True,):
                assert time.monotonic() < end, "the frozen one keeps the lock"
                time.sleep(0.05)
        session.execute(text("SELECT 1"))

    found = Database(given)
    # Not by the limit on our side, which a frozen process could not act on: the loop stands still with it.
    with pytest.raises((DBAPIError, TimeoutError)):
        await found.run(freeze, within=0.5)


async def test_each_transaction_of_ours_is_bounded_on_the_server(postgres: PostgresServer, database: str) -> None:
    payments = PaymentStage(postgres, database)
    await payments.create_tables()
    with metered() as meter:
        handler = Trial(retry=Retry(attempts=2, wait=fixed(0.1)))
        async with payments.run(handler, retention=timedelta(days=1), payload_retention=timedelta(days=1)) as run:
            payments.send("good")
            payments.send("late", "fail:1")
            payments.send("bad", "forever")
            await run.until(payments.has("good"), "an effect")
            await run.until(payments.has("late"), "a retry")
            await run.until(lambda: bool(run.seen(MessageDeadLettered)), "a dead letter")
            await run.until(lambda: bool(run.seen(OffsetsCommitted)), "a mark")
            worker = run.worker
        database_again = Database(payments.url)
        place = PositionStore(
            database=database_again, dialect=worker.dialect, tables=worker.tables, transport=worker.transport
        )
        await skip(place, "credit", TOPIC, "end")
        await database_again.dispose()
    unbounded = [one for one in meter.transactions if not any(BOUND in each for each in one[:2])]
    # Queries about the session or the server, before a transaction, hold no lock.
    assert [one for one in unbounded if any(_locks(each) for each in one)] == []
    assert len(meter.transactions) > 20


def _locks(statement: str) -> bool:
    return any(word in statement for word in ("INSERT ", "UPDATE ", "DELETE ", "FOR SHARE", "advisory"))
