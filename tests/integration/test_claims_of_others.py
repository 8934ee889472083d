"""A handler that ends the transaction behind its session's back, while another one claims the same message ID."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from consumerkit import Context, Message, Ordering, Retry
from consumerkit.events import AttemptFailed, MessageDeadLettered
from consumerkit.outcome import Outcome
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import MemoryStage, Write, opened

pytestmark = pytest.mark.every_variant

LEDGER = DEFAULT_TABLES.processed_messages


@pytest.fixture(params=["psycopg", "asyncpg", "sqlite"])
async def place(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[MemoryStage]:
    async with opened(fresh_url(request, tmp_path, sqlite="sqlite+aiosqlite"), partitions=2) as made:
        yield made


async def end(session: AsyncSession, how: str) -> None:
    """End the transaction where only the driver knows."""
    raw: Any = (await (await session.connection()).get_raw_connection()).driver_connection
    if "asyncpg" in type(raw).__module__:
        await raw.execute(how.upper())
    else:
        await getattr(raw, how)()


def outcomes(session: Session) -> dict[str, Outcome]:
    return {name: Outcome(outcome) for name, outcome in session.execute(select(LEDGER.c.message_id, LEDGER.c.outcome))}


@pytest.mark.parametrize("fails", [True, False], ids=["then-fails", "and-goes-on"])
async def test_the_claim_of_another_transaction_is_not_taken_back(place: MemoryStage, fails: bool) -> None:
    done: list[str] = []

    def copy(session: Session, row: dict[str, Any]) -> None:
        """What a copy of the message does in a transaction of its own, once the claim is free."""
        session.execute(insert(LEDGER).values(row))
        session.execute(text("INSERT INTO lines (message_id, partition, \"offset\") VALUES ('3', 1, 7)"))

    async def roll_back(context: Context) -> None:
        if context.message_id != "3" or done:
            return
        done.append("3")
        session = context.session
        found = (await session.execute(select(LEDGER).where(LEDGER.c.message_id == "3"))).mappings().one()
        row = {name: value for name, value in found.items() if name != "processed_at"}
        await end(session, "rollback")
        await place.database.run(lambda other: copy(other, row))
        if fails:
            raise ValueError

    for number in range(6):
        place.append(number, partition=0)
    async with place.run(Write(roll_back, retry=Retry(attempts=1))) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    assert done
    assert await place.database.run(outcomes) == {str(number): Outcome.PROCESSED for number in range(6)}
    assert sorted(one.message_id for one in await place.lines()) == [str(number) for number in range(6)]
    assert not run.seen(MessageDeadLettered)
    assert not run.seen(AttemptFailed)


@pytest.mark.parametrize("fails", [True, False], ids=["then-fails", "and-goes-on"])
async def test_a_claim_that_the_handler_made_durable_is_taken_back(place: MemoryStage, fails: bool) -> None:
    async def commit(context: Context) -> None:
        if context.message_id == "3":
            await context.session.flush()
            await end(context.session, "commit")
            if fails:
                raise ValueError

    for number in range(6):
        place.append(number, partition=0)
    async with place.run(Write(commit, retry=Retry(attempts=1), batch_size=1)) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is committed")
    found = await place.database.run(outcomes)
    assert {name for name, outcome in found.items() if outcome is Outcome.DEAD} == {"3"}
    assert [one.message_id for one in run.seen(MessageDeadLettered)] == ["3"]


@pytest.mark.parametrize("place", ["psycopg"], indirect=True)
@pytest.mark.parametrize("how", ["text", "driver"])
async def test_a_copy_that_waits_for_the_claim_in_another_lane_stays_processed(place: MemoryStage, how: str) -> None:
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    seen: list[int] = []
    copied: list[Message] = []

    async def roll_back(context: Context) -> None:
        if context.message.partition or len(seen) > 3:
            return
        if not copied:
            # Only now, so that it cannot be the first; and the other lane's, since lanes take turns without an order.
            copied.append(place.append(1, partition=1))
        for _ in range(600):
            if await place.database.run(lambda other: other.scalar(text(waits))):
                seen.append(context.attempt)
                break
            if seen:
                break
            await asyncio.sleep(0.02)
        if how == "text":
            await context.session.execute(text("UPDATE lines SET key = NULL; ROLLBACK"))
        await end(context.session, "rollback")
        for _ in range(100):
            if await place.lines():
                break
            await asyncio.sleep(0.02)
        raise ValueError

    place.append(1, partition=0)
    handler = Write(roll_back, retry=Retry(attempts=1), ordering=Ordering.NONE, concurrency=2)
    async with place.run(handler) as run:
        await run.until(lambda: len(copied) == 1 and place.committed() == place.ends(), "all is committed")
    assert seen, "no copy ever waited"
    lines = await place.lines()
    (outcome,) = (await place.database.run(outcomes)).values()
    dead = run.seen(MessageDeadLettered)
    # One of the two was first: either its effect is there, or its dead letter, and the ledger says the same.
    assert (len(lines), len(dead), outcome) in {(1, 0, Outcome.PROCESSED), (0, 1, Outcome.DEAD)}
    if how == "driver":
        assert len(lines) == 1
