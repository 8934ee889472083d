"""Stopping in time, giving up what takes too long, and ending a process that stands still."""

import asyncio
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from sqlalchemy import text

from consumerkit import Context, Retry, fixed
from consumerkit.events import AttemptFailed, GroupCommitted, PartitionsRevoked, WorkerStopped
from consumerkit.transports.kafka import Client
from consumerkit.worker.watchdog import EXIT_STATUS
from tests.crash.app import Settings
from tests.crash.model import Payment
from tests.crash.pool import ROOT
from tests.integration.credit import Credit, PlainCredit
from tests.integration.kafka_stage import KafkaStage, payment
from tests.integration.stage import Run
from tests.services.process import wait_until

pytestmark = pytest.mark.calm


class Slow(Credit):
    async def handle(self, event: Payment, context: Context) -> object:
        await asyncio.sleep(0.005)
        self.work(event, context)
        return None


@pytest.mark.parametrize("transport", get_args(Client))
async def test_a_stop_finishes_what_is_under_way_and_the_next_start_goes_on_there(
    stage: KafkaStage, transport: Client
) -> None:
    total = 1000
    stage.send([payment(n, account=f"a-{n % 40}", partition=n % 2) for n in range(total)])
    handled = 0
    for number in range(3):
        async with stage.run(Slow(stage, batch_size=50, concurrency=1), transport=transport, grace=100.0) as run:
            wanted = total if number == 2 else 150 * (number + 1)
            await run.until(lambda wanted=wanted: stage.count_effects() >= wanted, "effects")  # type: ignore[misc]
            assert await run.stop()
            handled += _handled(run)
        assert run.seen(WorkerStopped)[0].seconds < 60
        assert run.seen(PartitionsRevoked)
        stage.check_ledger()
        if number < 2:
            assert stage.count_effects() < total
    # Nothing was delivered twice, so every stop had committed exactly what was finished.
    assert handled == total
    assert sum(stage.committed(stage.topic).values()) == total


def _handled(run: Run) -> int:
    return sum(event.processed + event.duplicates for event in run.seen(GroupCommitted))


class Sleeper(Credit):
    async def handle(self, event: Payment, context: Context) -> object:
        self.work(event, context)
        if event.kind == "sleep":
            await context.session.execute(text("SELECT pg_sleep(600)"))
        return None


async def test_what_exceeds_the_grace_is_rolled_back_and_delivered_again(stage: KafkaStage) -> None:
    records = [payment(n, account="one", kind="sleep" if n == 3 else "ok") for n in range(10)]
    stage.send(records)
    handler = Sleeper(stage)
    async with stage.run(handler, grace=1.0) as run:
        await run.until(lambda: handler.invocations["p-3"] > 0, "the slow one")
        assert not await asyncio.wait_for(run.stop(), 120)
    assert "p-3" not in {row["message_id"] for row in stage.effects()}
    stage.check_ledger()
    async with stage.run(Credit(stage)) as run:
        await run.until(stage.finished(10), "all effects")
    assert not stage.dead()
    stage.check_ledger()


@pytest.mark.parametrize("kind", [Credit, PlainCredit])
async def test_a_partition_that_goes_parks_a_message_that_waits_for_its_retry(
    stage: KafkaStage, kind: type[Credit | PlainCredit]
) -> None:
    stage.send([payment(n, account="one", kind="fail" if n == 3 else "ok") for n in range(10)])
    handler = kind(stage, retry=Retry(attempts=3, wait=fixed(3600), in_place=3))
    async with stage.run(handler, grace=100.0) as run:
        await run.until(lambda: stage.count_effects() == 3 and bool(run.seen(AttemptFailed)), "its failure")
        assert await asyncio.wait_for(run.stop(), 120)
    # It is parked, so that its attempt is kept, and what follows it is left to the next owner.
    assert stage.committed(stage.topic)[0] == 4
    assert [row["attempts"] for row in stage.rows("SELECT attempts FROM consumerkit_parked_messages")] == [1]
    assert not stage.dead()


class Worked:
    """A worker process as an operator runs it."""

    def __init__(self, stage: KafkaStage, directory: Path, transport: Client = "confluent", **settings: float) -> None:
        given = Settings(
            bootstrap=stage.kafka.bootstrap,
            database=stage.url,
            transport=transport,
            topic=stage.topic,
            dead_letter_topic=stage.dead_letter_topic,
            journal=str(directory / "journal"),
        )
        given = replace(given, **settings)  # type: ignore[arg-type]
        self.log = directory / "log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.app"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        assert self.process.stdin is not None
        with self.process.stdin as line:
            line.write(given.line())

    def status(self, within: float) -> int:
        """Wait for the process's end."""
        try:
            return self.process.wait(within)
        finally:
            self.process.kill()


async def test_sigterm_drains_and_ends_with_success(stage: KafkaStage, tmp_path: Path) -> None:
    total = 2000
    stage.send([payment(n, account=f"a-{n % 40}", partition=n % 2) for n in range(total)])
    worked = Worked(stage, tmp_path, slow=0.003)
    await asyncio.to_thread(
        wait_until, lambda: stage.count_effects() > 100, within=120, what="the first effects", every=0.05
    )
    worked.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.01)
    worked.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worked.status, 120) == 0, worked.log.read_text()[-2000:]
    done = stage.count_effects()
    assert 100 < done < total
    # All lanes ended at a transaction's end, and what they had finished in order is committed.
    committed = stage.committed(stage.topic)
    finished = {(row["partition"], row["offset"]) for row in stage.effects()}
    for partition, offset in committed.items():
        assert all((partition, place) in finished for place in range(offset))
        assert (partition, offset) not in finished
    stage.check_ledger()


@pytest.mark.parametrize("transport", get_args(Client))
async def test_a_process_whose_loop_stands_still_is_ended_by_its_watchdog(
    stage: KafkaStage, tmp_path: Path, transport: Client
) -> None:
    stage.send([payment(1), payment(2, kind="stall"), payment(3)])
    worked = Worked(stage, tmp_path, transport, stall_timeout=3.0)
    assert await asyncio.to_thread(worked.status, 120) == EXIT_STATUS, worked.log.read_text()[-2000:]
    # Two watches see it: of the process's loop, and of the consumer's, which runs in the same with one of the clients.
    assert re.search("event loop has been blocked|own loop has not run", worked.log.read_text())
    assert not stage.dead()
    stage.check_ledger()
