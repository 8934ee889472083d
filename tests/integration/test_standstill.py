"""A partition that stands still is reported for any reason: only its mark and its log's end count."""

import asyncio
from typing import Any

import pytest

from consumerkit import Ordering, Retry, fixed
from consumerkit.engine import standstill, topic_watch
from consumerkit.events import PartitionMoves, PartitionStandsStill, PartitionTaken
from consumerkit.transports.memory.group import MemoryConsumer
from tests.integration.payments import TOPIC, PaymentStage, Trial
from tests.integration.stage import Run
from tests.services import PostgresServer


@pytest.fixture
async def payments(postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch) -> PaymentStage:
    monkeypatch.setattr(topic_watch, "ASKED_EVERY", 0.2)
    made = PaymentStage(postgres, database)
    await made.create_tables()
    return made


async def watch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Announce a second without a move, once all is taken over, which may take longer."""
    await run.until(lambda: len(run.seen(PartitionTaken)) == 2, "all is taken over")
    monkeypatch.setattr(standstill, "STILL_AFTER", 1.0)


def told(run: Run, partition: int, reason: str) -> list[PartitionStandsStill]:
    """The events about a partition for this reason."""
    events = run.seen(PartitionStandsStill)
    return [one for one in events if one.partition.partition == partition and reason in one.reason]


def findings(run: Run, partition: int) -> list[str]:
    return [one.what for one in run.worker.readiness().findings if f"t[{partition}] stands at" in one.what]


async def test_a_client_that_gives_nothing_is_told_of(payments: PaymentStage, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, silent = MemoryConsumer.fetch, True

    async def fetching(self: MemoryConsumer, limit: int, timeout: float) -> Any:
        if not silent:
            return await fetch(self, limit, timeout)
        await asyncio.sleep(0.05)
        return []

    monkeypatch.setattr(MemoryConsumer, "fetch", fetching)
    async with payments.run(Trial()) as run:
        await watch(run, monkeypatch)
        payments.send(1, partition=1)
        await run.until(lambda: bool(told(run, 1, "no message of it is in hand or being fetched")), "it is announced")
        assert {(one.offset, one.end) for one in run.seen(PartitionStandsStill)} == {(0, 1)}
        assert (
            findings(run, 1) == [one for one in findings(run, 1) if "at offset 0, and its log ends at 1" in one] != []
        )
        silent = False
        await run.until(payments.has(1), "it goes on")
        await run.until(lambda: not findings(run, 1), "that is told, too")
        assert run.seen(PartitionMoves)


async def test_what_waits_in_order_behind_a_parked_message_is_told_of(
    payments: PaymentStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Trial(ordering=Ordering.PARTITION, retry=Retry(attempts=9, wait=fixed(3600)))
    payments.send(0, "forever")
    payments.send(1, partition=1)
    async with payments.run(handler) as run:
        await run.until(payments.holds(1), "it is parked")
        await watch(run, monkeypatch)
        payments.send(2)
        await run.until(lambda: bool(told(run, 0, "behind a parked message")), "what is behind it is announced")
        await run.until(payments.has(1), "the other partition goes on")
        assert len(findings(run, 0)) == 1


async def test_a_partition_that_loses_its_leader_is_told_of(
    payments: PaymentStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with payments.run(Trial()) as run:
        payments.send(1, partition=1)
        await run.until(payments.has(1), "it is read")
        await watch(run, monkeypatch)
        with payments.broker.leaderless(TOPIC, 1):
            await run.until(lambda: bool(told(run, 1, "check its leader")), "it is announced")
            assert len(findings(run, 1)) == 1
        await run.until(lambda: not findings(run, 1), "that is over")
