"""Messages that are buried since their handler committed by itself: their dead letters are as durable as any."""

from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from consumerkit import Context, Retry
from consumerkit.events import CommitsLost, PartitionInDoubt
from tests.crash.model import Payment
from tests.integration.stage import Run
from tests.integration.yard import Trial, Yard
from tests.services import PostgresServer
from tests.services.proxy import CommitProxy, Lose

ONCE = Retry(attempts=1)


class Commits(Trial):
    """Commits past its session where the payment says so."""

    ended = False

    async def handle(self, event: Payment, context: Context) -> None:
        await super().handle(event, context)
        if event.kind == "commit":
            await context.session.flush()
            await commit(context.session)
            self.ended = True


async def commit(session: AsyncSession) -> None:
    raw = await (await session.connection()).get_raw_connection()
    driver: Any = raw.driver_connection
    await driver.commit()


@pytest.fixture
async def yard(postgres: PostgresServer, database: str) -> Yard:
    made = Yard(postgres, database, partitions=1)
    await made.create_tables()
    return made


def dead(yard: Yard) -> list[str]:
    return [row["message_id"] for row in yard.dead()]


async def all_committed(run: Run, yard: Yard, count: int) -> None:
    await run.until(lambda: yard.committed() == count, f"{count} offsets", within=40)


async def test_a_conviction_that_the_database_loses_is_noticed(yard: Yard) -> None:
    async with yard.run(Commits(retry=ONCE)) as run:
        yard.send(1)
        await all_committed(run, yard, 1)
        lanes = yard.rows("SELECT encode(lane, 'hex') AS lane, sequence FROM consumerkit_lane_progress")
        with psycopg.connect(yard.postgres.dsn(yard.database)) as connection:
            # Marks wait for this, while the lanes go on.
            connection.execute("SELECT FROM consumerkit_partition_progress FOR UPDATE")
            yard.send(2, "commit")
            await run.until(lambda: dead(yard) == ["p-2"], "the dead letter")
            # What the handler has committed is lost with it.
            connection.execute("DELETE FROM effects WHERE message_id = 'p-2'")
            connection.execute("DELETE FROM consumerkit_processed_messages WHERE message_id = 'p-2'")
            connection.execute("DELETE FROM consumerkit_dead_letters")
            connection.execute("DELETE FROM consumerkit_lane_progress")
            for one in lanes:
                connection.execute(
                    "INSERT INTO consumerkit_lane_progress (consumer, lane, sequence) "
                    "VALUES (1, decode(%s, 'hex'), %s)",
                    [one["lane"], one["sequence"]],
                )
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert dead(yard) == [], "nothing was lost"
        await run.until(lambda: dead(yard) == ["p-2"], "the dead letter, again", within=40)
        assert run.seen(CommitsLost)
        await all_committed(run, yard, 2)
    assert yard.outcome(2) == 3


@pytest.mark.parametrize("lose", ["commit", "answer"])
async def test_a_conviction_whose_commit_is_in_doubt_is_made_once_and_is_no_lost_commit(yard: Yard, lose: Lose) -> None:
    handler = Commits(retry=ONCE)
    where = urlsplit(yard.postgres.admin_dsn)
    assert where.hostname is not None
    assert where.port is not None

    seen = 0

    def plan(_: int) -> Lose:
        # The proxy takes BEGIN ISOLATION LEVEL READ COMMITTED for a COMMIT, too: of the transaction that finds out, and
        # of the conviction.
        nonlocal seen
        seen += handler.ended
        return lose if seen == 3 else "nothing"

    async with CommitProxy(where.hostname, where.port, plan) as proxy:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{yard.database}"
        async with yard.run(handler, database=url) as run:
            yard.send(1)
            await all_committed(run, yard, 1)
            yard.send(2, "commit")
            await run.until(lambda: dead(yard) == ["p-2"], "the dead letter")
            yard.send(3)
            await all_committed(run, yard, 3)
            assert proxy.lost == 1
            assert not run.seen(CommitsLost)
            assert not run.seen(PartitionInDoubt)
            await run.until(lambda: len(yard.published()) == 1, "the record")
    assert (dead(yard), yard.effects(), yard.outcome(2)) == (["p-2"], ["1", "2", "3"], 3)
    assert len(handler.calls["p-2"]) == 1
