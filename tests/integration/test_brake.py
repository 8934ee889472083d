"""An outage does not turn a topic into dead letters, and a few bad messages do not stop the others."""

import time
from collections.abc import Sequence
from itertools import pairwise

import pytest

from consumerkit import Message, Ordering, Retry, exponential, fixed
from consumerkit.engine.lanes.lane import Lane
from consumerkit.engine.lanes.partition_brakes import PartitionBrakes
from consumerkit.events import AttemptFailed, BrakeOff, BrakeOn, PartitionInDoubt
from consumerkit.message import TopicPartition
from consumerkit.policies.brake import Brake
from tests.integration.kafka_stage import KafkaStage, payment
from tests.integration.payments import TOPIC, BatchTrial, PaymentStage, PlainTrial, Trial
from tests.services import PostgresServer
from tests.variants import further_cases

QUICK = Brake(probe=exponential(0.3, max=1.5, jitter=0))
NEVER = b"{broken"


@pytest.fixture
async def payments(postgres: PostgresServer, database: str) -> PaymentStage:
    made = PaymentStage(postgres, database)
    await made.create_tables()
    return made


class Down(Trial):
    """Fails for all until it is healed."""

    def decide(self, kind: str, message_id: str, attempt: int) -> None:
        super().decide("ok" if self.healed else "forever", message_id, attempt)


class PlainDown(PlainTrial):
    """The same, plain."""

    def decide(self, kind: str, message_id: str, attempt: int) -> None:
        super().decide("ok" if self.healed else "forever", message_id, attempt)


class BatchDown(BatchTrial):
    """The same, for a batch at once."""

    def decide(self, kind: str, message_id: str, attempt: int) -> None:
        super().decide("ok" if self.healed else "forever", message_id, attempt)


@pytest.mark.parametrize("ordering", [Ordering.KEY, *further_cases(Ordering.PARTITION, Ordering.NONE)])
async def test_a_provider_that_is_down_for_every_message(payments: PaymentStage, ordering: Ordering) -> None:
    handler = Down(ordering=ordering, retry=Retry(attempts=2, wait=fixed(0.1)), brake=QUICK, batch_size=20)
    total = 150
    for number in range(total):
        payments.send(number, key=b"%d" % (number % 40), partition=number % 2)
    async with payments.run(handler) as run:
        await run.until(lambda: bool(run.seen(BrakeOn)), "the brake")
        before = sum(map(len, handler.calls.values()))
        # The waits of these grow from 0.3 to 1.5 seconds; before them may be an attempt that was under way.
        await run.until(lambda: sum(map(len, handler.calls.values())) >= before + 6, "some probes")
        calls = sorted(call.moment for of in handler.calls.values() for call in of)[before:]
        gaps = [b - a for a, b in pairwise(calls)]
        assert min(gaps[-2:]) > 1.2, gaps
        assert len(payments.dead()) <= 10
        before = len(payments.dead())
        handler.healed = True
        await run.until(lambda: bool(run.seen(BrakeOff)), "the end of the brake")
        await run.until(lambda: len(payments.effects()) == total - before, "all others")
    assert len(payments.dead()) == before <= 10
    assert not payments.parked()
    assert not run.seen(PartitionInDoubt)
    payments.check()


@pytest.mark.parametrize("kind", [Down, *further_cases(PlainDown, BatchDown)])
async def test_a_deploy_that_always_raises_and_the_next_one(
    payments: PaymentStage, kind: type[Down | PlainDown | BatchDown]
) -> None:
    retry = Retry(attempts=1)
    total = 120
    for number in range(total):
        payments.send(number, key=b"%d" % (number % 40), partition=number % 2)
    async with payments.run(kind(retry=retry, brake=QUICK)) as run:
        await run.until(lambda: bool(run.seen(BrakeOn)), "the brake")
        began = time.monotonic()
        await run.until(lambda: time.monotonic() > began + 2, "some probes")
        assert len(run.seen(BrakeOn)) == 1
    before = len(payments.dead())
    assert 0 < before <= 10
    async with payments.run(kind(retry=retry, brake=QUICK, healed=True)) as run:
        await run.until(lambda: len(payments.effects()) == total - before, "all others")
    assert len(payments.dead()) == before
    payments.check()


@pytest.mark.parametrize("poison", ["mixed", *further_cases("undecodable", "rejected")])
@pytest.mark.parametrize("batch", [20, 500])
async def test_a_flood_with_five_percent_of_poison_keeps_flowing(
    payments: PaymentStage, poison: str, batch: int
) -> None:
    total = 1000
    bad = [number for number in range(total) if number % 20 == 7]
    for number in range(total):
        if number not in bad:
            payments.send(number, key=b"%d" % (number % 50), partition=number % 2)
        elif poison == "undecodable" or (poison == "mixed" and number % 40 == 7):
            payments.send(number, key=b"%d" % (number % 50), partition=number % 2, value=NEVER)
        else:
            payments.send(number, "reject", key=b"%d" % (number % 50), partition=number % 2)
    async with payments.run(Trial(batch_size=batch)) as run:
        await run.until(lambda: len(payments.effects()) == total - len(bad), "all good ones")
        await run.until(lambda: len(payments.dead()) == len(bad), "all dead letters")
    assert not run.seen(BrakeOn)
    payments.check()


async def test_rejects_of_one_key_hold_up_nothing_behind_them(payments: PaymentStage) -> None:
    for number in range(45):
        payments.send(number, "reject" if number < 15 else "ok", key=b"k")
    async with payments.run(Trial()) as run:
        await run.until(lambda: len(payments.effects()) == 30, "all good ones", within=120)
        assert len(payments.dead()) == 15
    assert not run.seen(BrakeOn)
    payments.check()


async def test_a_deploy_that_rejects_every_key_is_braked(payments: PaymentStage) -> None:
    brake = Brake(rejected_keys=5, probe=fixed(0.2))
    for number in range(20):
        payments.send(number, "reject", key=b"%d" % number)
    async with payments.run(Trial(brake=brake)) as run:
        await run.until(lambda: bool(run.seen(BrakeOn)), "the brake", within=120)
        await run.until(lambda: payments.committed() == 20, "all are parked", within=240)
        assert len(payments.dead()) == 5
        kept = [event for event in run.seen(AttemptFailed) if event.braking]
        assert kept
        assert all(event.wait is not None and event.wait >= 0.1 for event in kept)
        payments.send(99, key=b"good")
        await run.until(lambda: bool(run.seen(BrakeOff)), "the end of the brake", within=120)
    payments.check()


@pytest.mark.parametrize("ordering", Ordering)
async def test_what_cannot_be_read_in_one_partition_holds_up_no_other(
    payments: PaymentStage, ordering: Ordering
) -> None:
    total = 300
    for number in range(total):
        payments.send(f"bad-{number}", key=b"%d" % (number % 40), partition=0, value=NEVER)
    for number in range(total):
        payments.send(number, key=b"%d" % (number % 40), partition=1)
    brake = Brake(probe=exponential(0.5, max=60, jitter=0))
    async with payments.run(Trial(ordering=ordering, batch_size=20, brake=brake)) as run:
        await run.until(lambda: bool(run.seen(BrakeOn)), "the brake")
        await run.until(lambda: len(payments.effects()) == total, "all of the other partition", within=60)
        assert len(payments.dead()) <= 10
        assert [(on.partition.partition if on.partition else None) for on in run.seen(BrakeOn)] == [0]
        assert "t[0]" in str(run.worker.readiness())
    payments.check()


async def test_a_partition_that_is_slowed_down_goes_on_when_one_can_be_read(payments: PaymentStage) -> None:
    for number in range(30):
        payments.send(f"bad-{number}", key=b"%d" % number, partition=0, value=NEVER)
    for number in range(100):
        payments.send(number, key=b"good-%d" % number, partition=0)
    async with payments.run(Trial(brake=Brake(probe=fixed(0.05)), batch_size=5)) as run:
        await run.until(lambda: len(payments.effects()) == 100, "all good ones", within=120)
        await run.until(lambda: len(payments.dead()) == 30, "all dead letters", within=120)
    assert run.seen(BrakeOff)
    payments.check()


@pytest.mark.parametrize("ordering", [Ordering.KEY, *further_cases(Ordering.PARTITION, Ordering.NONE)])
async def test_a_deploy_that_cannot_decode_anything(payments: PaymentStage, ordering: Ordering) -> None:
    total = 60
    for number in range(total):
        payments.send(number, key=b"%d" % (number % 10), partition=number % 2, value=NEVER)
    async with payments.run(Trial(ordering=ordering, brake=QUICK)) as run:
        await run.until(lambda: bool(run.seen(BrakeOn)), "the brake")
        began = time.monotonic()
        await run.until(lambda: time.monotonic() > began + 3, "some probes")
        assert len(payments.dead()) <= 10
    before = len(payments.dead())
    # Delivered again, as after a crash: nothing is parked twice, nothing stands still, no token is spent twice.
    payments.forget_offsets()
    async with payments.run(Trial(ordering=ordering, brake=QUICK)) as run:
        await run.until(lambda: bool(run.seen(BrakeOn)), "the brake")
        began = time.monotonic()
        await run.until(lambda: time.monotonic() > began + 3, "some probes")
        assert not [event for event in run.events if type(event).__name__ == "Trouble"]
    offsets = [(row["partition"], row["offset"]) for row in payments.parked()]
    assert len(offsets) == len(set(offsets))
    dead = len(payments.dead())
    assert dead <= before + 10
    assert not run.seen(PartitionInDoubt)
    async with payments.run(Trial(ordering=ordering, codec=Lenient(), brake=QUICK)) as run:
        # A dead letter for want of an ID has no claim, so it runs when it is delivered again.
        await run.until(lambda: len(payments.effects()) >= total - dead, "what can be decoded now")
        await run.until(lambda: not payments.parked() and payments.committed() == total, "an empty lot")
        payments.forget_offsets()
    # And delivered again, now with an ID in the ledger.
    async with payments.run(Trial(ordering=ordering, codec=Lenient(), brake=QUICK)) as run:
        await run.until(lambda: payments.committed() == total, "all offsets")
    effects = [int(number) for number in payments.effects()]
    assert len(effects) == len(set(effects))
    given_up = {2 * row["offset"] + row["partition"] for row in payments.dead()}
    assert set(effects) | given_up == set(range(total))
    effects = [number for number in effects if number not in given_up]
    if ordering is Ordering.KEY:
        for key in range(10):
            of_key = [number for number in effects if number % 10 == key]
            assert of_key == sorted(of_key)
    if ordering is Ordering.PARTITION:
        for partition in range(2):
            of_partition = [number for number in effects if number % 2 == partition]
            assert of_partition == sorted(of_partition)


class Lenient:
    """Decodes whatever it gets to the same payment."""

    content_type = "application/json"

    def decoder(self, event_type: type) -> object:
        return lambda _: event_type(account="a", amount=1)

    def encode(self, value: object) -> bytes:
        raise NotImplementedError


async def test_an_outage_on_the_real_broker(stage: KafkaStage) -> None:
    handler = Down(topic=stage.topic, group=stage.topic, dead_letter=None, retry=Retry(attempts=1), brake=QUICK)
    total = 300
    stage.send([payment(n, account=f"a-{n % 40}", partition=n % 2) for n in range(total)])
    async with stage.run(handler) as run:
        await run.until(lambda: bool(run.seen(BrakeOn)), "the brake")
        began = time.monotonic()
        await run.until(lambda: time.monotonic() > began + 3, "some probes")
        before = len(stage.dead())
        assert before <= 10
        handler.healed = True
        await run.until(stage.finished(total - before), "all others")
    assert len(stage.dead()) == before
    stage.check_ledger()


async def test_what_is_set_aside_of_a_slowed_partition_goes_before_what_comes_later(
    payments: PaymentStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next probe falls due between two looks: at a message that is set aside, and at the next of its key."""
    admits, early = PartitionBrakes.admits, list[Message]()

    def just_before(brakes: PartitionBrakes, message: Message) -> bool:
        if message.header("message-id") == b"p-first" and not early:
            early.append(message)
            return False
        return admits(brakes, message)

    monkeypatch.setattr(PartitionBrakes, "admits", just_before)
    payments.send("first", key=b"k")
    payments.send("second", key=b"k")
    async with payments.run(Trial(concurrency=1)) as run:
        await run.until(payments.has("first", "second"), "both")
    assert early
    assert payments.effects() == ["first", "second"]
    payments.check()


async def test_what_is_given_again_of_a_slowed_partition_goes_before_what_was_set_aside_while_it_ran(
    payments: PaymentStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at what is set aside falls due right after a transaction has failed."""
    admits, turn = PartitionBrakes.admits, Lane._turn
    early, restored = list[Message](), list[list[int]]()

    def but_once(brakes: PartitionBrakes, message: Message) -> bool:
        if message.header("message-id") == b"p-second" and not early:
            early.append(message)
            return False
        return admits(brakes, message)

    async def and_look(lane: Lane, messages: Sequence[Message]) -> None:
        await turn(lane, messages)
        if early and not restored:
            restored.append([message.offset for message in messages])
            lane.restore(TopicPartition(TOPIC, 0))

    monkeypatch.setattr(PartitionBrakes, "admits", but_once)
    monkeypatch.setattr(Lane, "_turn", and_look)
    payments.send("beside", key=b"other")
    payments.send("first", "fail:1", key=b"k")
    payments.send("second", key=b"k")
    async with payments.run(Trial(concurrency=1)) as run:
        await run.until(payments.has("beside", "first", "second"), "all")
    assert restored == [[0, 1]]
    assert payments.effects() == ["beside", "first", "second"]
    payments.check()
