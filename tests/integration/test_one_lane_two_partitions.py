"""Two partitions share a lane, and one is revoked: the lane finishes the other's messages."""

import asyncio

import pytest

from consumerkit import Context, Ordering, Retry, fixed
from consumerkit.events import PartitionsRevoked
from tests.crash.model import Payment
from tests.integration.credit import Credit
from tests.integration.kafka_stage import KafkaStage, payment
from tests.integration.stage import Run
from tests.services import KafkaServer, PostgresServer

DRAIN = 20.0


class Slow(Credit):
    """In one lane; a payment may be `later`, for one attempt, or `slow`, for as long as the test wants."""

    ordering = Ordering.PARTITION
    concurrency = 1
    retry = Retry(attempts=5, wait=fixed(1.0))

    def __init__(self, stage: KafkaStage) -> None:
        super().__init__(stage)
        self.go, self.inside = asyncio.Event(), False

    async def handle(self, event: Payment, context: Context) -> object:
        if event.kind == "later" and context.attempt == 1:
            raise ValueError("later")
        if event.kind == "slow":
            self.inside = True
            await self.go.wait()
        return await super().handle(event, context)


@pytest.fixture
async def stage(kafka: KafkaServer, postgres: PostgresServer, database: str, topic_name: str) -> KafkaStage:
    made = KafkaStage(kafka, postgres, database, topic_name, 2)
    await made.create_tables()
    return made


def waits_for_the_lane(run: Run) -> bool:
    return any(lane.has_due for engine in run.worker._parts.engines for lane in engine._lanes)


def leaving(run: Run) -> bool:
    return any(one.is_leaving for engine in run.worker._parts.engines for one in engine.partitions)


async def test_a_message_that_is_gone_when_its_turn_comes_is_not_waited_for(stage: KafkaStage) -> None:
    """As if the lane has run it behind its predecessor, during the query for due messages."""
    slow, other = 0, 1  # the group gives the first one away
    handler = Slow(stage)
    async with stage.run(handler, drain_timeout=DRAIN) as first:
        await asyncio.to_thread(stage.send, [payment(1, partition=slow), payment(2, kind="later", partition=other)])
        await first.until(lambda: len(stage.rows("SELECT FROM consumerkit_parked_messages")) == 1, "a parked one")
        await asyncio.to_thread(stage.send, [payment(3, kind="slow", partition=slow)])
        await first.until(lambda: handler.inside, "the slow one")
        await first.until(lambda: waits_for_the_lane(first), "the parked one's turn")
        stage.execute(
            "DELETE FROM consumerkit_parked_messages",
            "UPDATE consumerkit_processed_messages SET outcome = 1 WHERE message_id = 'p-2'",
        )
        async with stage.run(Credit(stage), drain_timeout=DRAIN) as second:
            await second.until(lambda: leaving(first), "a partition's going")
            handler.go.set()
            await second.until(lambda: bool(first.seen(PartitionsRevoked)), "its end")
            await asyncio.to_thread(stage.send, [payment(4, partition=slow), payment(5, partition=other)])
            await second.until(lambda: stage.count_effects() >= 4, "all effects")
    assert sorted(row["message_id"] for row in stage.effects()) == ["p-1", "p-3", "p-4", "p-5"]
