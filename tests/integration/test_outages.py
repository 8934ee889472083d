"""Trouble that is no message's fault costs no attempt, causes no dead letter, and ends by itself."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Literal, get_args
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import text

from consumerkit import Brake, Context, Ordering, Retry, fixed
from consumerkit.events import AttemptFailed, GroupRolledBack, HandlerPaused, Trouble, TroubleOver, WorkerStarted
from consumerkit.transports.kafka import Client
from tests.crash.model import Payment
from tests.integration.credit import Credit, PlainCredit
from tests.integration.inspector import OURS
from tests.integration.kafka_stage import KafkaStage, effect, payment
from tests.integration.stage import Run
from tests.services import KafkaServer, PostgresServer
from tests.services.tcp_proxy import CommitProxy, Lose

pytestmark = pytest.mark.calm

Shutdown = Literal["fast", "immediate"]


def check_nothing_counted(stage: KafkaStage, run: Run, total: int) -> None:
    """Each message took effect once, none was tried as if it had failed, none was given up."""
    assert sorted(row["message_id"] for row in stage.effects()) == sorted(f"p-{n}" for n in range(total))
    assert not stage.dead()
    assert not run.seen(AttemptFailed)
    stage.check_ledger()


class Slow(Credit):
    """Takes long enough for an outage to fall into the middle."""

    async def handle(self, event: Payment, context: Context) -> object:
        await asyncio.sleep(0.001)
        self.work(event, context)
        return None


@pytest.mark.parametrize("how", get_args(Shutdown))
async def test_a_database_that_goes_and_comes_back(kafka: KafkaServer, topic_name: str, how: Shutdown) -> None:
    with PostgresServer.start_private() as server:
        stage = KafkaStage(kafka, server, server.create_database(), topic_name)
        await stage.create_tables()
        total = 3000
        stage.send([payment(n, account=f"a-{n % 70}", partition=n % 2) for n in range(total)])
        async with stage.run(Slow(stage, batch_size=100)) as run:
            await run.until(lambda: stage.count_effects() > 300, "the first effects")
            await asyncio.to_thread(server.stop, how)
            await run.until(lambda: len(run.seen(Trouble)) >= 3, "trouble told")
            await asyncio.to_thread(server.start)
            await run.until(stage.finished(total), "the rest, by itself")
            assert run.seen(TroubleOver)
            await run.until(lambda: sum(stage.committed(stage.topic).values()) == total, "all offsets")
        check_nothing_counted(stage, run, total)


@pytest.mark.parametrize("transport", get_args(Client))
async def test_a_broker_that_stops_answering_and_goes_on(
    postgres: PostgresServer, database: str, topic_name: str, transport: Client
) -> None:
    with KafkaServer.start_private() as broker:
        stage = KafkaStage(broker, postgres, database, topic_name)
        await stage.create_tables()
        half = 1500
        records = [payment(n, account=f"a-{n % 70}", partition=n % 2) for n in range(2 * half)]
        stage.send(records[:half])
        async with stage.run(Slow(stage, batch_size=50), transport=transport) as run:
            await run.until(lambda: stage.count_effects() > 200, "the first effects")
            broker.pause()
            # Longer than the session: the consumer has to join the group again.
            await asyncio.sleep(9)
            broker.resume()
            await asyncio.to_thread(stage.send, records[half:])
            await run.until(stage.finished(2 * half), "the rest, by itself")
            await run.until(lambda: sum(stage.committed(stage.topic).values()) == 2 * half, "all offsets")
        check_nothing_counted(stage, run, 2 * half)


@contextmanager
def terminating(stage: KafkaStage, every: float, times: int) -> Iterator[list[int]]:
    """Have the server end a session of the worker's, so many times, as an administrator may."""
    ended: list[int] = []
    over = threading.Event()

    def work() -> None:
        find = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND state <> 'idle' "
            "AND application_name <> %s ORDER BY random() LIMIT 1"
        )
        with psycopg.connect(stage.postgres.admin_dsn, autocommit=True) as connection:
            while not over.wait(every) and sum(ended) < times:
                ended.append(len(connection.execute(find, [stage.database, OURS]).fetchall()))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ended
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_sessions_ended_by_the_administrator(stage: KafkaStage, driver: str) -> None:
    total = 3000
    stage.send([payment(n, account=f"a-{n % 70}", partition=n % 2) for n in range(total)])
    url = stage.postgres.url(stage.database, driver)
    async with stage.run(Slow(stage, batch_size=50), database=url) as run:
        await run.until(lambda: stage.count_effects() > 0, "the first effects")
        # Not for ever: where every transaction takes longer than that, none would be left to finish.
        with terminating(stage, 0.4, times=8) as ended:
            await run.until(stage.finished(total), "all effects")
    assert sum(ended) >= 3
    check_nothing_counted(stage, run, total)


LOSSES: dict[str, Callable[[int], Lose]] = {
    # At no fixed interval: what is begun again after a loss takes as many commits each time.
    "answer": lambda n: "answer" if n in (3, 8, 14, 21, 29) else "nothing",
    "commit": lambda n: "commit" if n in (3, 8, 14, 21, 29) else "nothing",
    "silence": lambda n: "silence" if n in (6, 12) else "nothing",
}


# A thread that waits for COMMIT's answer cannot be called back: silence, there, is the watchdog's and TCP's to end.
@pytest.mark.parametrize(
    "kind, loss",
    [(Credit, "answer"), (Credit, "commit"), (Credit, "silence"), (PlainCredit, "answer"), (PlainCredit, "commit")],
)
async def test_a_commit_whose_answer_is_lost_is_neither_lost_nor_doubled(
    stage: KafkaStage, kind: type[Credit | PlainCredit], loss: str
) -> None:
    total = 500
    stage.send([payment(n, account=f"a-{n % 70}", partition=n % 2) for n in range(total)])
    where = urlsplit(stage.postgres.admin_dsn)
    assert where.hostname is not None
    assert where.port is not None
    runs: list[Run] = []
    commits = count(1)

    def plan(_: int) -> Lose:
        """Lose nothing of what is looked at before the worker starts."""
        begun = bool(runs) and bool(runs[0].seen(WorkerStarted))
        return LOSSES[loss](next(commits)) if begun else "nothing"

    async with CommitProxy(f"{where.hostname}:{where.port}", plan) as proxy:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{stage.database}"
        handler = kind(stage, batch_size=25)
        async with stage.run(handler, database=url, transaction_timeout=3.0) as run:
            runs.append(run)
            await run.until(stage.finished(total), "all effects", within=120)
        assert proxy.lost >= 2
    check_nothing_counted(stage, run, total)


class Transfer(Credit):
    """Updates two rows, in the order that the payment names them: lanes deadlock."""

    async def handle(self, event: Payment, context: Context) -> object:
        context.session.add(effect(event, context))
        for account in event.account.split("-"):
            await context.session.execute(
                text("UPDATE balances SET balance = balance + 1 WHERE account = :a"), {"a": account}
            )
            await asyncio.sleep(0.002)
        return None


async def test_lanes_that_deadlock_are_no_ones_attempt(stage: KafkaStage) -> None:
    await asyncio.to_thread(
        stage.execute,
        "CREATE TABLE balances (account text PRIMARY KEY, balance bigint)",
        "INSERT INTO balances SELECT n::text, 0 FROM generate_series(0, 9) n",
        f"ALTER DATABASE \"{stage.database}\" SET deadlock_timeout = '20ms'",
    )
    total = 400
    stage.send([payment(n, account=f"{n * 7 % 10}-{n * 3 % 10}", partition=n % 2) for n in range(total)])
    handler = Transfer(
        stage, ordering=Ordering.NONE, concurrency=4, batch_size=20, retry=Retry(attempts=1, wait=fixed(0))
    )
    async with stage.run(handler) as run:
        await run.until(stage.finished(total), "all effects")
    assert any("40P01" in event.error for event in run.seen(GroupRolledBack))
    assert stage.rows("SELECT sum(balance)::int AS n FROM balances") == [{"n": 2 * total}]
    check_nothing_counted(stage, run, total)


async def test_a_missing_table_of_the_users_pauses_the_handler_and_dead_letters_nothing(stage: KafkaStage) -> None:
    class Missing(Credit):
        async def handle(self, event: Payment, context: Context) -> object:
            await context.session.execute(text("INSERT INTO nowhere VALUES (1)"))
            return None

    stage.send([payment(n, account=f"a-{n}") for n in range(20)])
    async with stage.run(Missing(stage, brake=Brake(probe=fixed(0.2)))) as run:
        await run.until(lambda: bool(run.seen(HandlerPaused)), "the pause")
        assert "42P01" in run.seen(HandlerPaused)[0].error
        stage.execute("CREATE TABLE nowhere (n int)")
        await run.until(lambda: stage.rows("SELECT count(*) AS n FROM nowhere") == [{"n": 20}], "all effects")
    assert not stage.dead()
    assert not run.seen(AttemptFailed)
