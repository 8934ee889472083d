"""Messages that are dead-lettered because their handler committed: their dead letters are as durable as others."""

from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from consumerkit import Context, DeadLetter, Retry, fixed
from consumerkit.events import CommitsLost, PartitionInDoubt
from tests.crash.model import Payment
from tests.integration.payments import DEAD, PaymentStage, Trial
from tests.integration.stage import Run
from tests.services import PostgresServer
from tests.services.tcp_proxy import CommitProxy, LateCommits, Lose

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


class CommitsLater(Commits):
    """Fails at first, so that it commits in a retry from the parking lot."""

    async def handle(self, event: Payment, context: Context) -> None:
        if event.kind == "commit" and context.attempt == 1:
            raise ValueError("later")
        await super().handle(event, context)


async def commit(session: AsyncSession) -> None:
    raw = await (await session.connection()).get_raw_connection()
    driver: Any = raw.driver_connection
    await driver.commit()


@pytest.fixture
async def payments(postgres: PostgresServer, database: str) -> PaymentStage:
    made = PaymentStage(postgres, database, partitions=1)
    await made.create_tables()
    return made


def dead(payments: PaymentStage) -> list[str]:
    return [row["message_id"] for row in payments.dead()]


async def all_committed(run: Run, payments: PaymentStage, count: int) -> None:
    await run.until(lambda: payments.committed() == count, f"{count} offsets")


async def test_a_dead_letter_for_misuse_that_the_database_loses_is_noticed(payments: PaymentStage) -> None:
    async with payments.run(Commits(retry=ONCE)) as run:
        payments.send(1)
        await all_committed(run, payments, 1)
        lanes = payments.rows("SELECT encode(lane, 'hex') AS lane, sequence FROM consumerkit_lane_progress")
        with psycopg.connect(payments.postgres.dsn(payments.database)) as connection:
            # Marks wait for this, while the lanes go on.
            connection.execute("SELECT FROM consumerkit_partition_progress FOR UPDATE")
            payments.send(2, "commit")
            await run.until(lambda: dead(payments) == ["p-2"], "the dead letter")
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
        assert dead(payments) == [], "nothing was lost"
        await run.until(lambda: dead(payments) == ["p-2"], "the dead letter, again")
        assert run.seen(CommitsLost)
        await all_committed(run, payments, 2)
    assert payments.outcome(2) == 3


@pytest.mark.parametrize("lose", ["commit", "answer"])
async def test_a_dead_letter_for_misuse_whose_commit_is_in_doubt_is_made_once_and_is_no_lost_commit(
    payments: PaymentStage, lose: Lose
) -> None:
    handler = Commits(retry=ONCE)
    where = urlsplit(payments.postgres.admin_dsn)
    assert where.hostname is not None
    assert where.port is not None

    seen = 0

    def plan(_: int) -> Lose:
        # The proxy takes BEGIN ISOLATION LEVEL READ COMMITTED for a COMMIT, too: of the transaction that finds out, and
        # of the dead letter.
        nonlocal seen
        seen += handler.ended
        return lose if seen == 3 else "nothing"

    async with CommitProxy(f"{where.hostname}:{where.port}", plan) as proxy:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{payments.database}"
        async with payments.run(handler, database=url) as run:
            payments.send(1)
            await all_committed(run, payments, 1)
            payments.send(2, "commit")
            await run.until(lambda: dead(payments) == ["p-2"], "the dead letter")
            payments.send(3)
            await all_committed(run, payments, 3)
            assert proxy.lost == 1
            assert not run.seen(CommitsLost)
            assert not run.seen(PartitionInDoubt)
            await run.until(lambda: len(payments.published()) == 1, "the record")
    assert (dead(payments), payments.effects(), payments.outcome(2)) == (["p-2"], ["1", "2", "3"], 3)
    assert len(handler.calls["p-2"]) == 1


@pytest.mark.parametrize("hold_key", [False, True])
async def test_a_parked_message_is_dead_lettered_for_misuse_once_though_the_answer_was_lost(
    payments: PaymentStage, hold_key: bool
) -> None:
    where = urlsplit(payments.postgres.admin_dsn)
    assert where.hostname is not None
    assert where.port is not None
    letters = DeadLetter(DEAD, hold_key=hold_key)
    handler = CommitsLater(retry=Retry(attempts=2, wait=fixed(0.2)), dead_letter=letters)
    # Its COMMIT lands, while the worker sees the connection end.
    cut = LateCommits(f"{where.hostname}:{where.port}", b"INSERT INTO public.consumerkit_dead_letters", 0.0, cut=True)
    async with cut as proxy:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{payments.database}"
        async with payments.run(handler, database=url) as run:
            payments.send(2, "commit")
            await run.until(lambda: dead(payments) == ["p-2"], "the dead letter")
            assert proxy.landed is not None
            payments.send(3)
            await all_committed(run, payments, 2)
            await run.until(lambda: len(payments.published()) == 1, "the record")
            assert not run.seen(CommitsLost)
    waits = [("p-2", "held"), ("p-3", "message")] if hold_key else []
    assert [(row["message_id"], row["kind"]) for row in payments.parked()] == waits
    assert (dead(payments), payments.effects(), payments.outcome(2)) == (["p-2"], ["2"] if hold_key else ["2", "3"], 3)
    assert len(handler.calls["p-2"]) == 1


async def test_a_message_is_dead_lettered_for_misuse_though_commits_before_it_were_lost(payments: PaymentStage) -> None:
    async with payments.run(Commits(retry=ONCE)) as run:
        payments.send(1)
        await all_committed(run, payments, 1)
        with psycopg.connect(payments.postgres.dsn(payments.database)) as connection:
            # The transaction that dead-letters the message must find out.
            connection.execute("SELECT FROM consumerkit_partition_progress FOR UPDATE")
            payments.execute("DELETE FROM consumerkit_lane_progress")
            payments.send(2, "commit")
            await run.until(lambda: bool(run.seen(CommitsLost)), "that commits were lost")
        await all_committed(run, payments, 2)
        assert len(run.seen(CommitsLost)) == 1
    assert (dead(payments), payments.outcome(2)) == (["p-2"], 3)
