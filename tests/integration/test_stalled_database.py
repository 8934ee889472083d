"""A database that does not answer while partitions are given back: that takes its time, and no longer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, get_args
from urllib.parse import urlsplit

import pytest

from consumerkit import Context
from consumerkit.events import Event, GroupCommitted, PartitionsAssigned, PartitionsRevoked
from consumerkit.transports.kafka import Client
from tests.crash.model import Payment
from tests.integration.credit import Credit
from tests.integration.kafka_stage import KafkaStage, payment
from tests.integration.stage import Run
from tests.services import KafkaServer, PostgresServer
from tests.services.tcp_proxy import TcpProxy

pytestmark = pytest.mark.calm

DRAIN = 1.0
# What a transport allows beyond the drain before it takes the listener for stuck.
MARGIN = 5.0
# For starting a worker, and for the members' hearing of each other.
JOINING = 60.0
Moment = Literal["in a transaction", "after a commit"]


class Watched(Credit):
    """Calls a function of the test's within each transaction."""

    during: Callable[[], Awaitable[None]]

    async def handle(self, event: Payment, context: Context) -> object:
        self.work(event, context)
        await self.during()
        return None


@pytest.fixture
async def stage(kafka: KafkaServer, postgres: PostgresServer, database: str, topic_name: str) -> KafkaStage:
    made = KafkaStage(kafka, postgres, database, topic_name, 2)
    await made.create_tables()
    return made


def server_of(stage: KafkaStage) -> str:
    where = urlsplit(stage.postgres.admin_dsn)
    return f"{where.hostname}:{where.port}"


@pytest.mark.parametrize("moment", get_args(Moment))
@pytest.mark.parametrize("transport", get_args(Client))
async def test_partitions_are_given_back_in_time_though_the_database_does_not_answer(
    stage: KafkaStage, transport: Client, moment: Moment
) -> None:
    async with TcpProxy(server_of(stage)) as line:
        armed, done = False, 0

        async def during() -> None:
            if armed and moment == "in a transaction":
                line.stall()

        def stall_after_a_commit(event: Event) -> None:
            nonlocal done
            done += event.processed if isinstance(event, GroupCommitted) else 0
            if armed and moment == "after a commit" and done == 20:
                line.stall()  # before the mark, and before word is left

        url = f"postgresql+psycopg://postgres@{line.address}/{stage.database}"
        ours = {
            "database": url,
            "drain_timeout": DRAIN,
            "transaction_timeout": 600.0,
            "observers": [stall_after_a_commit],
        }
        async with stage.run(Watched(stage, during=during), transport=transport, **ours) as first:
            await asyncio.to_thread(stage.send, [payment(n, partition=n % 2) for n in range(10)])
            await first.until(lambda: sum(stage.committed(stage.topic).values()) == 10, "the first ten")
            armed = True
            await asyncio.to_thread(stage.send, [payment(n, partition=n % 2) for n in range(10, 20)])
            await first.until(lambda: line.stalled, "the stall")
            armed = False
            async with stage.run(Credit(stage), transport=transport, drain_timeout=DRAIN) as second:
                await second.until(lambda: bool(assigned(second)), "its partition", within=DRAIN + MARGIN + JOINING)
                assert line.stalled
                assert [event.lost for event in first.seen(PartitionsRevoked)] == [False]
                line.flow()
                await asyncio.to_thread(stage.send, [payment(n, partition=n % 2) for n in range(20, 30)])
                await second.until(lambda: stage.count_effects() >= 30, "all effects")
                await second.until(lambda: sum(stage.committed(stage.topic).values()) == 30, "all offsets")
        assert sorted(row["message_id"] for row in stage.effects()) == sorted(f"p-{n}" for n in range(30))
        assert not stage.dead()
        stage.check_ledger()


def assigned(run: Run) -> list[PartitionsAssigned]:
    return [event for event in run.seen(PartitionsAssigned) if event.partitions]
