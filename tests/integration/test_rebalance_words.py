"""An ordinary rebalance is not reported as trouble: by no event, by no finding of readiness, and by no warning."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import get_args

import pytest

from consumerkit.events import PartitionsAssigned, Trouble
from consumerkit.observability.repetitions import without_rebalances
from consumerkit.transports.kafka import Client
from tests.integration.credit import Credit
from tests.integration.kafka_stage import KafkaStage, payment
from tests.integration.stage import Run

JOINS = 8


@asynccontextmanager
async def fed(stage: KafkaStage) -> AsyncIterator[None]:
    """Send messages all the time, so that commits are under way in each rebalance."""
    over = asyncio.Event()

    async def feed() -> None:
        numbers = itertools.count()
        while not over.is_set():
            some = [payment(next(numbers), partition=number % stage.partitions) for number in range(20)]
            await asyncio.to_thread(stage.send, some)

    task = asyncio.create_task(feed())
    try:
        yield
    finally:
        over.set()
        await task


async def join(stage: KafkaStage, transport: Client) -> Run:
    async with stage.run(Credit(stage), transport=transport) as run:
        await run.until(lambda: any(event.partitions for event in run.seen(PartitionsAssigned)), "its partition")
        await asyncio.sleep(0.3)
    return run


@pytest.mark.parametrize("transport", get_args(Client))
async def test_members_that_come_and_go_are_no_trouble(
    stage: KafkaStage, transport: Client, caplog: pytest.LogCaptureFixture
) -> None:
    findings: list[str] = []
    with caplog.at_level(logging.WARNING):
        async with stage.run(Credit(stage), transport=transport) as first:
            first.worker.observe(lambda _: findings.extend(map(str, first.worker.readiness().findings)))
            await first.until(lambda: bool(first.seen(PartitionsAssigned)), "its partitions")
            findings.clear()
            async with fed(stage):
                others = [await join(stage, transport) for _ in range(JOINS)]
    troubles = [event for run in (first, *others) for event in run.seen(Trouble)]
    # A broker that a busy machine slows down is no rebalance.
    assert [one for one in troubles if "the broker does not answer about" not in one.error] == []
    assert [one for one in findings if "trouble" in one and "does not answer about" not in one] == []
    # What a worker's stop cuts off in the database's client is no rebalance.
    ours = [record for record in caplog.records if not record.name.startswith("sqlalchemy.")]
    lines = [record for record in ours if record.levelno >= logging.WARNING and without_rebalances(record)]
    told = [(record.name, record.getMessage()) for record in lines]
    # A broker that has just started loads the coordinator of its producers, and a busy machine slows it down; that is
    # no rebalance.
    elsewhere = ("idempotence PID", "does not answer about")
    assert [one for one in told if not any(text in one[1] for text in elsewhere)] == []
