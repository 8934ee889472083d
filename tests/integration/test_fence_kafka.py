"""COMMITs that land late, with the real broker: what was parked by them is never overtaken."""

import asyncio
import gc
from typing import get_args
from urllib.parse import urlsplit

import pytest

from consumerkit import Retry, fixed
from consumerkit.events import PartitionInDoubt, PartitionTaken
from consumerkit.transports.kafka import Client
from tests.integration.kafka_stage import KafkaStage, payment
from tests.integration.payments import Trial
from tests.integration.stage import Run
from tests.services import KafkaServer, PostgresServer
from tests.services.tcp_proxy import LateCommits

pytestmark = [pytest.mark.calm, pytest.mark.slow, pytest.mark.timeout(180)]
PARKING = b"INSERT INTO public.consumerkit_parked_messages"
TRANSPORTS = [get_args(Client)[0], *(pytest.param(one, marks=pytest.mark.matrix) for one in get_args(Client)[1:])]


@pytest.fixture
async def stage(kafka: KafkaServer, postgres: PostgresServer, database: str, topic_name: str) -> KafkaStage:
    made = KafkaStage(kafka, postgres, database, topic_name, 2)
    await made.create_tables()
    return made


def late_commits(stage: KafkaStage, delay: float, *, cut: bool) -> LateCommits:
    where = urlsplit(stage.postgres.admin_dsn)
    assert where.hostname is not None
    assert where.port is not None
    return LateCommits(f"{where.hostname}:{where.port}", PARKING, delay, cut=cut)


def through(stage: KafkaStage, proxy: LateCommits) -> str:
    return f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{stage.database}"


def trial(stage: KafkaStage) -> Trial:
    retry = Retry(attempts=5, wait=fixed(3))
    return Trial(topic=stage.topic, group=stage.topic, retry=retry, dead_letter=None, concurrency=4)


def order(stage: KafkaStage, account: str = "a-1") -> list[str]:
    return [row["message_id"] for row in stage.effects() if row["account"] == account]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_parking_whose_commit_is_in_doubt_and_lands_late_lets_nothing_overtake(
    stage: KafkaStage, transport: Client
) -> None:
    handler = trial(stage)
    async with (
        late_commits(stage, 6, cut=True) as proxy,
        stage.run(handler, transport=transport, database=through(stage, proxy)) as run,
    ):
        await asyncio.to_thread(stage.send, [payment(1, kind="fail:1")])
        await run.until(lambda: proxy.kept is not None, "the COMMIT kept back")
        later = [payment(2), payment(3, account="other", partition=1)]
        await asyncio.to_thread(stage.send, later)
        await run.until(lambda: order(stage, "other") == ["p-3"], "another partition's message, at that time")
        assert proxy.landed is None, "it landed before the others had a chance"
        assert order(stage) == []
        assert len(run.seen(PartitionInDoubt)) == 1
        await run.until(lambda: proxy.landed is not None, "its arrival")
        await run.until(lambda: len(order(stage)) == 2, "all effects")
    assert order(stage) == ["p-1", "p-2"]
    assert [attempt for attempt in handler.attempts(1) if attempt > 1] == [2]
    stage.check_ledger()


# The first owner ends during its COMMIT, and its connection is left to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_owners_late_parking_does_not_slip_past_the_next_owners_loading(
    stage: KafkaStage, transport: Client
) -> None:
    one, other = trial(stage), trial(stage)
    await hand_over(stage, transport, one, other)
    gc.collect()
    assert order(stage) == ["p-1", "p-2"]
    assert other.attempts(1) == [2]
    stage.check_ledger()


async def hand_over(stage: KafkaStage, transport: Client, one: Trial, other: Trial) -> None:
    """Have a partition go from an owner whose parking is late to the next one."""
    async with late_commits(stage, 14, cut=False) as proxy:
        url = through(stage, proxy)
        async with stage.run(one, transport=transport, database=url, grace=0.5, drain_timeout=0.5) as first:
            await asyncio.to_thread(stage.send, [payment(1, kind="fail:1")])
            await first.until(lambda: proxy.kept is not None, "the COMMIT kept back")
            # It gives up long before its COMMIT arrives, and leaves the group.
            first.stopping.set()
            async with stage.run(other, transport=transport) as second:
                await asyncio.to_thread(stage.send, [payment(2)])
                await second.until(lambda: taken(second, 1), "the partition without a holder")
                assert not landed(proxy), "it landed before the next owner came"
                assert not taken(second, 0)
                await second.until(lambda: taken(second, 0), "the fence")
                assert landed(proxy)
                (parked,) = [event.parked for event in second.seen(PartitionTaken) if event.partition.partition == 0]
                assert parked == 1
                await second.until(lambda: len(order(stage)) == 2, "all effects")


def landed(proxy: LateCommits) -> bool:
    """Whether the COMMIT has reached the server."""
    return proxy.landed is not None


def taken(run: Run, partition: int) -> bool:
    """Whether a worker has taken a partition."""
    return any(event.partition.partition == partition for event in run.seen(PartitionTaken))
