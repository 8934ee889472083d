"""Whatever keeps a partition from going on, it is told: a look at nothing but its mark and the end of its log."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from consumerkit import Ordering, Retry, fixed
from consumerkit.engine import standstill, topic_watch
from consumerkit.events import PartitionMoves, PartitionStandsStill
from consumerkit.transports.memory_group import MemoryConsumer
from tests.integration.stage import Run
from tests.integration.yard import Trial, Yard
from tests.services import PostgresServer


@pytest.fixture
async def yard(postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch) -> Yard:
    monkeypatch.setattr(topic_watch, "ASKED_EVERY", 0.2)
    monkeypatch.setattr(standstill, "STILL_AFTER", 1.0)
    made = Yard(postgres, database)
    await made.create_tables()
    return made


def stands(run: Run, *partitions: int) -> Callable[[], bool]:
    return lambda: {one.partition.partition for one in run.seen(PartitionStandsStill)} == set(partitions)


def findings(run: Run) -> list[str]:
    return [one.what for one in run.worker.readiness().findings if "stands at" in one.what]


async def test_a_client_that_gives_nothing_is_told_of(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, silent = MemoryConsumer.fetch, True

    async def fetching(self: MemoryConsumer, limit: int, timeout: float) -> Any:
        if not silent:
            return await fetch(self, limit, timeout)
        await asyncio.sleep(0.05)
        return []

    monkeypatch.setattr(MemoryConsumer, "fetch", fetching)
    async with yard.run(Trial()) as run:
        yard.send(1, partition=1)
        await run.until(stands(run, 1), "it is told of")
        [told] = run.seen(PartitionStandsStill)
        assert (told.offset, told.end) == (0, 1)
        assert "nothing is fetched of it" in told.reason
        [finding] = findings(run)
        assert "t[1] stands at offset 0, and its log ends at 1" in finding
        silent = False
        await run.until(yard.has(1), "it goes on")
        await run.until(lambda: bool(run.seen(PartitionMoves)), "that is told, too")
        assert findings(run) == []


async def test_what_waits_in_order_behind_a_parked_message_is_told_of(yard: Yard) -> None:
    handler = Trial(ordering=Ordering.PARTITION, retry=Retry(attempts=9, wait=fixed(3600)))
    yard.send(0, "forever")
    yard.send(1, partition=1)
    async with yard.run(handler) as run:
        await run.until(yard.holds(1), "it is parked")
        yard.send(2)
        await run.until(stands(run, 0), "what is behind it is told of")
        assert "behind a parked message" in run.seen(PartitionStandsStill)[0].reason
        assert yard.has(1)()
        assert len(findings(run)) == 1
