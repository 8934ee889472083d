"""One owner at a time acts for a partition: paused ones that wake, late COMMITs, and doubts, on real servers."""

import asyncio
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import pytest

from consumerkit import Retry, fixed
from consumerkit.engine.partitions import fence_waits
from consumerkit.errors import Unavailable
from consumerkit.events import FenceAwaited, OffsetsCommitted, PartitionInDoubt, PartitionsAssigned, PartitionTaken
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Position
from consumerkit.transports.kafka import Client
from consumerkit.transports.memory.group import MemoryConsumer
from tests.crash.ordering_app import Settings
from tests.crash.ordering_run import Crew
from tests.crash.ordering_verdict import judge
from tests.integration.kafka_stage import KafkaStage, payment
from tests.integration.payments import TOPIC, PaymentStage, PlainTrial, Trial
from tests.integration.stage import Run
from tests.services import KafkaServer, PostgresServer
from tests.services.process import freeze
from tests.services.tcp_proxy import LateCommits

pytestmark = pytest.mark.calm

PARKING = b"INSERT INTO public.consumerkit_parked_messages"
SESSION, IDLE = 3.0, 3.0


@pytest.fixture
async def payments(postgres: PostgresServer, database: str) -> PaymentStage:
    made = PaymentStage(postgres, database)
    await made.create_tables()
    return made


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("transport", get_args(Client))
def test_a_paused_owner_that_wakes_does_not_overtake_what_the_next_one_parked(
    kafka: KafkaServer, postgres: PostgresServer, database: str, topic_name: str, tmp_path: Path, transport: Client
) -> None:
    stage = KafkaStage(kafka, postgres, database, topic_name, 1)
    settings = Settings(
        bootstrap=kafka.bootstrap,
        database=stage.url,
        dsn=postgres.dsn(database),
        transport=transport,
        topic=topic_name,
        wait=600.0,  # due when the test says so, below
        timeout=IDLE,
    )
    sent = [payment(1, kind="open:1"), payment(2), payment(3, account="other"), payment(4)]
    with Crew(stage, settings, tmp_path) as crew:
        owner = crew.start()
        crew.until_owning(owner)
        stage.send(sent[:1])
        crew.until(f"SELECT count(*) > 0 FROM attempts WHERE pid = {owner.pid}", "the first owner's attempt")
        freeze(owner.pid)
        open_ones = (
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() "
            "AND state = 'idle in transaction'"
        )
        assert stage.rows(open_ones)[0]["n"] >= 1, "the owner holds no open transaction"
        stage.send(sent[1:])
        heir = crew.start()
        crew.until_owning(heir)
        crew.until("SELECT count(*) > 0 FROM consumerkit_parked_messages WHERE attempts = 1", "the heir's parking")
        owner.send_signal(signal.SIGCONT)
        crew.until("SELECT count(*) > 0 FROM effects WHERE account = 'other'", "the other key's effect")
        time.sleep(3)
        assert stage.rows("SELECT message_id FROM effects WHERE account = 'a-1'") == []
        stage.execute("UPDATE consumerkit_parked_messages SET due_at = now() WHERE attempts = 1")
        crew.until_finished(sent)
        judge(stage, sent, "account", 0.0)
        pids = {row["pid"] for row in stage.rows("SELECT pid FROM attempts")}
        assert {owner.pid, heir.pid} <= pids
        assert owner.poll() is None, crew.last_words(owner)


@pytest.mark.parametrize("kind", [Trial, PlainTrial])
async def test_a_parking_whose_commit_is_in_doubt_and_lands_late_lets_nothing_overtake(
    payments: PaymentStage, kind: type[Trial | PlainTrial]
) -> None:
    async with late_commits(payments, cut=True) as (proxy, url):
        handler = kind(retry=Retry(attempts=5, wait=fixed(3)))
        async with payments.run(handler, database=url) as run:
            payments.send(1, "fail:1")
            await run.until(lambda: proxy.kept is not None, "the COMMIT kept back")
            payments.send(2)
            payments.send(3, key=b"other", partition=1)
            await run.until(payments.has(3), "another partition's message, at that time")
            assert proxy.landed is None
            assert len(run.seen(PartitionInDoubt)) == 1
            await run.until(lambda: proxy.landed is not None, "its arrival")
            await run.until(payments.has(1, 2), "all effects")
    assert payments.effects() == ["3", "1", "2"]
    assert [n for n in handler.attempts(1) if n > 1] == [2]
    payments.check()


async def test_an_owners_late_parking_does_not_slip_past_the_next_owners_loading(payments: PaymentStage) -> None:
    one, other = Trial(retry=Retry(attempts=5, wait=fixed(3))), Trial(retry=Retry(attempts=5, wait=fixed(3)))
    moved = TopicPartition(TOPIC, 1)
    # The first owner gives up draining long before its COMMIT arrives.
    through = late_commits(payments, cut=False, delay=8)
    async with through as (proxy, url), payments.run(one, database=url, drain_timeout=0.5) as first:
        payments.send(1, "fail:1", partition=1)
        await first.until(lambda: proxy.kept is not None, "the COMMIT kept back")
        async with payments.run(other) as second:
            payments.send(2, partition=1)
            await second.until(lambda: moved in assigned(second), "the move")
            assert proxy.landed is None
            await second.until(lambda: moved in {event.partition for event in second.seen(PartitionTaken)}, "the fence")
            (taken,) = [event for event in second.seen(PartitionTaken) if event.partition == moved]
            # It was written when the COMMIT had landed, or it would not know.
            assert taken.parked == 1
            await second.until(payments.has(1, 2), "all effects")
    assert payments.effects() == ["1", "2"]
    assert other.attempts(1) == [2]
    payments.check()


def assigned(run: Run) -> set[TopicPartition]:
    """What a worker was ever given."""
    return {one for event in run.seen(PartitionsAssigned) for one in event.partitions}


def late_commits(payments: PaymentStage, *, cut: bool, delay: float = 4.0) -> "_Late":
    """A way to the database on which the COMMIT of the first parking is late; with `cut`, in doubt besides."""
    return _Late(payments, cut=cut, delay=delay)


class _Late:
    """The proxy, and the URL by which a worker goes through it."""

    def __init__(self, payments: PaymentStage, *, cut: bool, delay: float) -> None:
        where = urlsplit(payments.postgres.admin_dsn)
        assert where.hostname is not None
        assert where.port is not None
        self._payments = payments
        self._proxy = LateCommits(f"{where.hostname}:{where.port}", PARKING, delay, cut=cut)

    async def __aenter__(self) -> tuple[LateCommits, str]:
        await self._proxy.__aenter__()
        return self._proxy, f"postgresql+psycopg://postgres@127.0.0.1:{self._proxy.port}/{self._payments.database}"

    async def __aexit__(self, *ended: object) -> None:
        await self._proxy.__aexit__(None, None, None)


STEAL = "UPDATE consumerkit_partition_progress SET owner = decode(md5(random()::text), 'hex') WHERE partition = 0"


async def test_a_rightful_owner_that_was_fenced_takes_its_partition_back_once(payments: PaymentStage) -> None:
    async with payments.run(Trial()) as run:
        payments.send(1)
        await run.until(payments.has(1), "the first effect")
        await run.until(lambda: bool(run.seen(OffsetsCommitted)), "its offset")
        await asyncio.to_thread(payments.execute, STEAL)
        taken = len(run.seen(PartitionTaken))
        payments.send(2)
        await run.until(payments.has(2), "the next effect")
        assert len(run.seen(PartitionInDoubt)) == 1
        assert len(run.seen(PartitionTaken)) == taken + 1
    assert payments.effects() == ["1", "2"]
    payments.check()


@contextmanager
def coordinator_away() -> Iterator[None]:
    """The broker answers, and the group's coordinator does not: it is another broker, or has dropped the member."""

    async def commit(_: MemoryConsumer, __: Mapping[TopicPartition, Position]) -> None:
        raise Unavailable("no answer from the coordinator")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryConsumer, "commit", commit)
        yield


@pytest.mark.parametrize("away", ["broker", "coordinator"])
async def test_an_owner_whom_the_broker_does_not_confirm_never_takes_back_what_it_lost(
    payments: PaymentStage, away: str
) -> None:
    owner = "SELECT owner FROM consumerkit_partition_progress WHERE partition = 0"
    async with payments.run(Trial(retry=Retry(attempts=5, wait=fixed(4)))) as run:
        payments.send(1)
        await run.until(payments.has(1), "the first effect")
        payments.send(2, "fail:1")
        await run.until(payments.holds(1), "the parking")
        # The due message is work that needs no broker: a member that was thrown out would do it.
        with payments.broker.outage() if away == "broker" else coordinator_away():
            await asyncio.to_thread(payments.execute, STEAL)
            before = payments.rows(owner)
            await run.until(lambda: bool(run.seen(PartitionInDoubt)), "the doubt")
            await asyncio.sleep(2)
            assert payments.rows(owner) == before
            assert payments.effects() == ["1"]
        await run.until(payments.has(2), "its effect, once the broker has confirmed")
    assert len(run.seen(PartitionInDoubt)) == 1
    payments.check()


async def test_who_waits_for_a_fence_says_so(payments: PaymentStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence_waits, "TOLD_AFTER", 0.2)
    begun, gate = asyncio.Event(), asyncio.Event()

    class Hanging(Trial):
        async def handle(self, event, context):  # type: ignore[no-untyped-def] # as the base's
            await super().handle(event, context)
            begun.set()
            await gate.wait()

    def waits(run: Run) -> bool:
        return "t[0] cannot be taken over" in str(run.worker.readiness())

    payments.send(1)
    async with payments.run(Hanging(), drain_timeout=0.2) as first:
        await first.until(begun.is_set, "the transaction")
        async with payments.run(Trial()) as second, payments.broker.cut_off("credit"):
            await second.until(lambda: waits(second), "the wait, in readiness")
            assert [one.partition.partition for one in second.seen(FenceAwaited)] == [0]
            gate.set()
            await second.until(payments.has(1), "its effect")
            await second.until(lambda: not waits(second), "the end of the wait")
    assert payments.effects() == ["1"]


async def test_a_foreign_token_is_found_before_anything_is_durable(payments: PaymentStage) -> None:
    gate = asyncio.Event()

    class Waiting(Trial):
        async def handle(self, event, context):  # type: ignore[no-untyped-def] # as the base's
            await super().handle(event, context)
            if context.message_id == "p-1" and not gate.is_set():
                await asyncio.to_thread(payments.execute, STEAL)
                gate.set()

    handler = Waiting()
    async with payments.run(handler) as run:
        payments.send(1)
        await run.until(payments.has(1), "the effect")
        assert len(run.seen(PartitionInDoubt)) == 1
    assert handler.attempts(1) == [1, 1]
    assert payments.effects() == ["1"]
    payments.check()
