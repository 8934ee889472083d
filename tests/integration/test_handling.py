"""The promises to handlers: order, results, publications, prefetch, batches, threads, drivers."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import get_args

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from consumerkit import (
    BatchContext,
    BatchHandler,
    Context,
    DeadLetter,
    Handler,
    Message,
    Ordering,
    Received,
    Reject,
    Retry,
    fixed,
    header,
)
from consumerkit.transports.kafka import Client
from tests.crash.model import Payment
from tests.integration.credit import Credit, PlainCredit
from tests.integration.kafka_stage import KafkaStage, effect, payment


@pytest.mark.parametrize("ordering", [Ordering.KEY, Ordering.PARTITION])
@pytest.mark.parametrize("kind", [Credit, PlainCredit])
async def test_effects_come_in_the_order_of_the_log(
    stage: KafkaStage, kind: type[Credit | PlainCredit], ordering: Ordering
) -> None:
    total = 2000
    records = [
        payment(
            n, account=f"a-{n % 37}", partition=n % 37 % 2, kind={100: "flaky", 900: "fail", 901: "reject"}.get(n, "ok")
        )
        for n in range(total)
    ]
    stage.send(records)
    handler = kind(stage, ordering=ordering, concurrency=3, batch_size=100)
    async with stage.run(handler) as run:
        await run.until(stage.finished(total - 2, 2), "all outcomes")
    chains: dict[object, list[int]] = {}
    for row in stage.effects():
        place = row["account"] if ordering is Ordering.KEY else row["partition"]
        chains.setdefault(place, []).append(row["offset"])
    assert all(offsets == sorted(offsets) for offsets in chains.values())
    assert len(chains) == (37 if ordering is Ordering.KEY else 2)
    stage.check_ledger()


class Answering(Credit):
    async def handle(self, event: Payment, context: Context) -> object:
        context.session.add(effect(event, context))
        return {"credited": event.amount, "to": event.account} if event.amount != 2 else None


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_what_a_handler_returns_is_kept_once(stage: KafkaStage, driver: str) -> None:
    stage.send([payment(n, amount=n) for n in (1, 2, 3, 1, 3)])
    async with stage.run(Answering(stage), database=stage.postgres.url(stage.database, driver)) as run:
        await run.until(stage.finished(3), "all effects")
    kept = stage.rows(
        "SELECT message_id, result FROM consumerkit_message_results JOIN consumerkit_processed_messages "
        "USING (consumer, digest) ORDER BY 1"
    )
    results = {row["message_id"]: json.loads(row["result"]) for row in kept}
    assert results == {"p-1": {"credited": 1, "to": "a-1"}, "p-3": {"credited": 3, "to": "a-1"}}
    stage.check_ledger()


class Announcing(Credit):
    """Publishes two receipts for each payment, and fails after it has."""

    receipts: str

    async def handle(self, event: Payment, context: Context) -> object:
        context.publish(self.receipts, key=event.account, value={"amount": event.amount}, headers={"kind": "receipt"})
        context.publish(self.receipts, key=event.account, value=event, id=f"named-{context.message_id}")
        self.work(event, context)
        return None


@pytest.mark.parametrize("transport", get_args(Client))
async def test_what_a_handler_publishes_arrives_once_per_id_and_only_with_its_effect(
    stage: KafkaStage, transport: Client
) -> None:
    receipts = f"{stage.topic}.receipts"
    stage.kafka.create_topic(receipts, 2)
    kinds = {7: "fail", 50: "flaky", 90: "reject"}
    records = [payment(n, account=f"a-{n % 9}", kind=kinds.get(n, "ok"), amount=n) for n in range(200)]
    stage.send([*records, *records[:80]])
    async with stage.run(Announcing(stage, receipts=receipts), transport=transport) as run:
        await run.until(stage.finished(198, 2), "all outcomes and an empty outbox")
    found = await asyncio.to_thread(stage.read, receipts)
    assert {record.header("kind") for record in found} == {"receipt", None}
    ids = Counter(record.header("message-id") for record in found)
    # At least once for each ID; with nothing killed here, once.
    assert set(ids.values()) == {1}
    named = {name for name in ids if name is not None and name.startswith("named-")}
    assert named == {f"named-p-{n}" for n in range(200) if kinds.get(n) not in ("fail", "reject")}
    assert len(ids) == 2 * len(named)


class Prefetching(Credit):
    """Loads what a batch needs in one query."""

    async def prefetch(self, events: Sequence[Payment], session: AsyncSession) -> None:
        self.sizes: list[int] = [*getattr(self, "sizes", []), len(events)]
        found = await session.execute(
            text("SELECT n FROM numbers WHERE n = ANY(:n)"), {"n": [e.amount for e in events]}
        )
        self.loaded = {row.n for row in found}

    async def session_setup(self, event: Payment, session: AsyncSession) -> None:
        await session.execute(text("SELECT set_config('test.account', :a, true)"), {"a": event.account})

    async def handle(self, event: Payment, context: Context) -> object:
        assert event.amount in self.loaded
        asked = await context.session.execute(text("SELECT current_setting('test.account')"))
        assert asked.scalar_one() == event.account
        context.session.add(effect(event, context))
        return None


async def test_prefetch_sees_the_group_and_setup_each_message(stage: KafkaStage) -> None:
    await asyncio.to_thread(
        stage.execute,
        "CREATE TABLE numbers (n bigint PRIMARY KEY)",
        "INSERT INTO numbers SELECT generate_series(0, 299)",
    )
    handler = Prefetching(stage, concurrency=1, batch_time=30.0)
    stage.send([payment(n, account=f"a-{n}", amount=n) for n in range(300)])
    async with stage.run(handler) as run:
        await run.until(stage.finished(300), "all effects")
    assert sum(handler.sizes) == 300
    assert len(handler.sizes) < 30


class _InBulk:
    name = "bulk"
    message_id = header("message-id")
    retry = Retry(attempts=2, wait=fixed(0.01))

    def __init__(self, stage: KafkaStage) -> None:
        self.topic = stage.topic
        self.group = stage.topic
        self.dead_letter: DeadLetter | None = DeadLetter(stage.dead_letter_topic)

    def work(self, events: Sequence[Received[Payment]], session: Session | AsyncSession) -> None:
        for received in events:
            message: Message = received.message
            single = Context(session, message, received.message_id, received.attempt, None)  # type: ignore[arg-type]
            session.add(effect(received.event, single))
        for received in events:
            if received.event.kind == "reject":
                raise Reject("blamed", of=received)
        if any(received.event.kind == "fail" for received in events):
            raise RuntimeError("no message is blamed")


class Bulk(_InBulk, BatchHandler[Payment]):
    async def handle_batch(self, events: Sequence[Received[Payment]], context: BatchContext) -> None:
        self.work(events, context.session)


class PlainBulk(_InBulk, BatchHandler[Payment]):
    def handle_batch(self, events: Sequence[Received[Payment]], context: BatchContext[Session]) -> None:
        self.work(events, context.session)


@pytest.mark.parametrize("kind", [Bulk, PlainBulk])
async def test_a_batch_handler_loses_only_the_culprits(stage: KafkaStage, kind: type[Bulk | PlainBulk]) -> None:
    kinds = {33: "reject", 34: "reject", 70: "fail", 150: "fail"}
    records = [payment(n, account=f"a-{n}", kind=kinds.get(n, "ok")) for n in range(200)]
    stage.send([*records, *records[::3]])
    async with stage.run(kind(stage)) as run:
        await run.until(stage.finished(196, 4), "all outcomes")
    dead = {row["message_id"]: row["reason"] for row in stage.dead()}
    assert dead == {"p-33": "rejected", "p-34": "rejected", "p-70": "exhausted", "p-150": "exhausted"}
    stage.check_ledger()


async def test_two_handlers_of_one_topic_each_take_their_own_effects(stage: KafkaStage) -> None:
    class Other(Handler[Payment]):
        name = "other"
        message_id = header("message-id")

        def __init__(self) -> None:
            self.topic = stage.topic
            self.group = f"{stage.topic}-other"

        async def handle(self, event: Payment, context: Context) -> None:
            context.session.add(effect(event, context))

    stage.send([payment(n) for n in range(100)])
    async with stage.run(Credit(stage), Other()) as run:
        await run.until(stage.finished(200), "the effects of both")
    assert Counter(row["message_id"] for row in stage.effects()) == Counter({f"p-{n}": 2 for n in range(100)})
