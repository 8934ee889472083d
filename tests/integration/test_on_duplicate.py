"""`on_duplicate` is called for a message whose ID was processed before, with the first result."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import pytest
from sqlalchemy.orm import Session

from consumerkit import Context, Ordering, Reject, Retry, fixed
from consumerkit.events import GroupCommitted
from consumerkit.redrive import Selection, redrive
from consumerkit.transports.kafka import Client
from consumerkit.transports.memory import MemoryBroker
from tests.crash.model import Payment
from tests.integration.credit import Credit
from tests.integration.kafka_stage import KafkaStage, effect, payment
from tests.integration.payments import DEAD, TOPIC, PaymentStage, PlainTrial, ProviderDown, Trial
from tests.services import PostgresServer

RECEIPTS = "receipts"


@pytest.fixture
async def payments(postgres: PostgresServer, database: str) -> PaymentStage:
    made = PaymentStage(postgres, database)
    made.broker = MemoryBroker(topics={TOPIC: 2, DEAD: 2, RECEIPTS: 1})
    await made.create_tables()
    return made


class _Told:
    """Returns a receipt, announces it, announces it again for each duplicate, and fails there if the test says so."""

    retry = Retry(attempts=9, wait=fixed(0.2))
    told: list[tuple[str, Any, int]]
    failures: Callable[[Context[Any]], Exception | None]

    def __init__(self, failures: Callable[[Context[Any]], Exception | None] = lambda _: None, **declared: Any) -> None:
        super().__init__(**declared)
        self.told = []
        self.failures = failures

    def receipt(self, event: Payment, context: Context[Any]) -> dict[str, object] | None:
        context.publish(RECEIPTS, key="k", value={"first": True})
        return None if event.kind == "nothing" else {"receipt": context.message_id, "at": context.message.offset}

    def tell(self, result: Any, context: Context[Any]) -> None:
        self.told.append((context.message_id, dict(result) if result else result, context.message.offset))
        context.publish(RECEIPTS, key="k", value={"again": result})
        context.publish(RECEIPTS, key="k", value={"named": True}, id=f"named-{context.message_id}")
        if isinstance(result, dict):
            result.clear()  # each call has its own
        if (error := self.failures(context)) is not None:
            raise error


class Told(_Told, Trial):
    async def handle(self, event: Payment, context: Context) -> Any:
        await super().handle(event, context)
        return self.receipt(event, context)

    async def on_duplicate(self, event: Payment, result: Any, context: Context) -> None:
        self.tell(result, context)


class PlainTold(_Told, PlainTrial):
    def handle(self, event: Payment, context: Context[Session]) -> Any:
        super().handle(event, context)
        return self.receipt(event, context)

    def on_duplicate(self, event: Payment, result: Any, context: Context[Session]) -> None:
        self.tell(result, context)


def first(number: int, offset: int) -> dict[str, object]:
    return {"receipt": f"p-{number}", "at": offset}


def finished(payments: PaymentStage, count: int) -> Callable[[], bool]:
    return lambda: payments.committed() == count


def published(payments: PaymentStage, count: int) -> Callable[[], bool]:
    return lambda: len(payments.broker.records(RECEIPTS)) == count


@pytest.mark.parametrize("kind", [Told, PlainTold])
async def test_duplicates_within_a_group_and_later_get_the_first_copys_result(
    payments: PaymentStage, kind: type[Told | PlainTold]
) -> None:
    handler = kind()
    for number in (1, 2, 1, 1):
        payments.send(number)
    payments.send(3, "nothing")
    payments.send(3, "nothing")
    async with payments.run(handler) as run:
        await run.until(finished(payments, 6), "the first six")
        assert handler.told == [("p-1", first(1, 0), 2), ("p-1", first(1, 0), 3), ("p-3", None, 5)]
        payments.send(2)
        payments.send(4)
        payments.send(3, "nothing", partition=1)
        await run.until(finished(payments, 9), "the others")
        duplicates = sum(event.duplicates for event in run.seen(GroupCommitted))
    assert sorted(handler.told[3:], key=str) == [("p-2", first(2, 1), 6), ("p-3", None, 0)]
    assert payments.effects() == ["1", "2", "3", "4"]
    assert duplicates == 5
    payments.check()


async def test_what_is_announced_again_has_an_id_of_its_own_that_redelivery_does_not_change(
    payments: PaymentStage,
) -> None:
    for _ in range(3):
        payments.send(1)
    async with payments.run(Told()) as run:
        await run.until(published(payments, 5), "one announcement and two more of two each")
    ids = [dict(record.headers)["message-id"] for record in payments.broker.records(RECEIPTS)]
    assert Counter(ids)[b"named-p-1"] == 2
    assert len(set(ids)) == 4
    payments.forget_offsets()
    async with payments.run(Told()) as run:
        await run.until(published(payments, 11), "all three delivered again, as duplicates")
    again = {dict(record.headers)["message-id"] for record in payments.broker.records(RECEIPTS)}
    # The first message's own redelivery is the only one that is new.
    assert len(again - set(ids)) == 1
    assert payments.effects() == ["1"]


@pytest.mark.parametrize("ordering", [Ordering.KEY, Ordering.PARTITION])
@pytest.mark.parametrize("kind", [Told, PlainTold])
async def test_a_copy_of_a_processed_message_whose_key_is_blocked_waits_in_its_turn(
    payments: PaymentStage, kind: type[Told | PlainTold], ordering: Ordering
) -> None:
    handler = kind(ordering=ordering, retry=Retry(attempts=99, wait=fixed(0.2)))
    payments.send(1)
    payments.send(2, "forever")  # until it is healed
    payments.send(3)
    payments.send(1)
    payments.send(4)
    async with payments.run(handler) as run:
        # With an order of the whole partition the others wait in the log.
        parked = 4 if ordering is Ordering.KEY else 1
        await run.until(lambda: len(payments.parked()) == parked, "what can be parked")
        assert handler.told == []
        handler.healed = True
        await run.until(finished(payments, 5), "all of them")
        await run.until(lambda: not payments.parked(), "an empty lot")
        payments.send(1)
        await run.until(finished(payments, 6), "one more copy, with nothing in its way")
    # In its turn: after what was before it, and before what came later.
    assert handler.told == [("p-1", first(1, 0), 3), ("p-1", first(1, 0), 5)]
    assert payments.effects() == ["1", "2", "3", "4"]
    payments.check()


async def test_it_is_not_told_of_conflicts_nor_of_duplicates_of_what_is_dead_or_parked(payments: PaymentStage) -> None:
    handler = Told(retry=Retry(attempts=5, wait=fixed(60)))
    payments.send(1)
    payments.send(1, "another payload")
    payments.send(2, "reject", key=b"b")
    payments.send(3, "forever", key=b"c")
    async with payments.run(handler) as run:
        await run.until(lambda: payments.holds(1, 2)() and payments.committed() == 4, "outcomes")
        payments.send(2, "reject", key=b"b")
        payments.send(3, "forever", key=b"d")
        await run.until(finished(payments, 6), "the duplicates")
    assert handler.told == []


async def test_without_the_method_nothing_is_read_and_duplicates_are_skipped(payments: PaymentStage) -> None:
    payments.send(1)
    payments.send(1)
    async with payments.run(Trial()) as run:
        await run.until(finished(payments, 2), "both")
    assert payments.effects() == ["1"]


@pytest.mark.parametrize("kind", [Told, PlainTold])
async def test_a_duplicate_that_fails_is_tried_again_and_the_first_stays_processed(
    payments: PaymentStage, kind: type[Told | PlainTold]
) -> None:
    handler = kind(lambda context: ProviderDown("down") if context.attempt < 4 else None)
    payments.send(1)
    payments.send(2, key=b"b")
    payments.send(1)
    payments.send(3, key=b"b")
    async with payments.run(handler) as run:
        await run.until(payments.holds(1), "the parking")
        assert payments.outcome(1) == 1
        (row,) = payments.parked()
        assert (row["kind"], row["offset"]) == ("repeat", 2)
        await run.until(lambda: payments.holds(0)() and payments.committed() == 4, "the fourth attempt")
        await run.until(lambda: len(payments.broker.records(RECEIPTS)) == 5, "the announcements")
    assert handler.told[-1] == ("p-1", first(1, 0), 2)
    assert sorted(payments.effects()) == ["1", "2", "3"]
    assert payments.dead() == []
    assert payments.outcome(1) == 1


@pytest.mark.parametrize("error", [Reject("as asked"), ProviderDown("for ever")])
async def test_a_duplicate_that_is_given_up_is_a_dead_letter_and_the_first_stays_processed(
    payments: PaymentStage, error: Exception
) -> None:
    handler = Told(
        lambda context: error if context.message.offset == 1 else None, retry=Retry(attempts=2, wait=fixed(0.1))
    )
    payments.send(1)
    payments.send(1)
    payments.send(2)
    async with payments.run(handler) as run:
        await run.until(lambda: payments.holds(0, 1)() and len(payments.effects()) == 2, "the dead letter")
        await run.until(finished(payments, 3), "all offsets")
        payments.send(1)
        await run.until(finished(payments, 4), "a further copy")
        await run.until(lambda: len(payments.published()) == 1, "the letter's copy")
    (letter,) = payments.dead()
    assert (letter["reason"], letter["offset"], letter["message_id"]) == ("failed_duplicate", 1, "p-1")
    assert payments.outcome(1) == 1
    assert sorted(payments.effects()) == ["1", "2"]
    assert handler.told[-1] == ("p-1", first(1, 0), 3)
    assert len(payments.published()) == 1


async def test_a_failing_duplicate_in_a_group_takes_nobody_along(payments: PaymentStage) -> None:
    handler = Told(lambda context: Reject("no") if context.message.offset % 10 == 5 else None)
    for number in range(40):
        payments.send(number)
    for number in range(40):
        payments.send(number)
    async with payments.run(handler) as run:
        await run.until(lambda: payments.committed() == 80 and payments.holds(0, 4)(), "all")
    assert sorted(map(int, payments.effects())) == list(range(40))
    assert [letter["offset"] for letter in payments.dead()] == [45, 55, 65, 75]
    assert {offset for _, _, offset in handler.told} == set(range(40, 80))


async def test_a_parked_duplicate_is_let_go_by_a_handler_that_does_not_want_to_be_told_any_more(
    payments: PaymentStage,
) -> None:
    payments.send(1)
    payments.send(1)
    async with payments.run(Told(lambda _: ProviderDown("down"), retry=Retry(attempts=9, wait=fixed(1)))) as run:
        await run.until(payments.holds(1), "the parking")
    async with payments.run(Trial()) as run:
        await run.until(payments.holds(0), "an empty lot")
    assert payments.effects() == ["1"]
    assert payments.outcome(1) == 1


class Announcing(Credit):
    """On the real broker."""

    receipts: str

    async def handle(self, event: Payment, context: Context) -> object:
        context.session.add(effect(event, context))
        return {"credited": event.amount}

    async def on_duplicate(self, event: Payment, result: dict[str, int], context: Context) -> None:
        context.publish(self.receipts, key=event.account, value=result)


@pytest.mark.parametrize("transport", get_args(Client))
async def test_results_are_announced_again_on_the_real_broker(stage: KafkaStage, transport: Client) -> None:
    receipts = f"{stage.topic}.receipts"
    stage.kafka.create_topic(receipts, 1)
    records = [payment(n, account=f"a-{n % 9}", amount=n) for n in range(100)]
    stage.send([*records, *records[:50]])
    async with stage.run(Announcing(stage, receipts=receipts), transport=transport) as run:
        await run.until(lambda: stage.count_effects() == 100 and _done(stage) == 150, "all outcomes")
        await run.until(lambda: stage.outbox() == 0, "an empty outbox")
    found = await asyncio.to_thread(stage.read, receipts, 1)
    assert {record.value for record in found} == {b'{"credited":%d}' % n for n in range(50)}
    assert len({record.header("message-id") for record in found}) == 50
    stage.check_ledger()


def _done(stage: KafkaStage) -> int:
    return sum(offset for offset in stage.committed(stage.topic).values() if offset > 0)


async def test_the_letter_of_a_failed_duplicate_never_runs_the_message(payments: PaymentStage) -> None:
    handler = Told(lambda _: ProviderDown("told in vain"), retry=Retry(attempts=1))
    payments.send(1)
    payments.send(1)
    async with payments.run(handler) as run:
        await run.until(lambda: [row["state"] for row in payments.dead()] == ["dead"], "the letter of the duplicate")
    assert payments.dead()[0]["reason"] == "failed_duplicate"
    payments.execute(
        "DELETE FROM consumerkit_processed_messages", "DELETE FROM consumerkit_message_results"
    )  # as retention does
    calls = len(handler.calls["p-1"])
    async with payments.run(handler) as run:
        await redrive(payments.url, Selection())
        await run.until(lambda: [row["state"] for row in payments.dead()] == ["resolved"], "what becomes of it")
    assert (payments.effects(), [row["state"] for row in payments.dead()]) == (["1"], ["resolved"])
    assert len(handler.calls["p-1"]) == calls
