"""`hold_key`: what follows a dead message of its key waits until a person decides. `resend`: dead IDs sent again."""

import pytest

from consumerkit import Brake, DeadLetter, Ordering, Retry, fixed
from consumerkit.redrive import RedriveResult, Selection, discard, redrive, resolve
from tests.integration.payments import DEAD, PaymentStage, PlainTrial, Trial
from tests.services import PostgresServer

HOLD = DeadLetter(DEAD, hold_key=True)
RUN = DeadLetter(DEAD, resend="run")
BOTH = DeadLetter(DEAD, hold_key=True, resend="run")
ONCE = Retry(attempts=1)


@pytest.fixture
async def payments(postgres: PostgresServer, database: str) -> PaymentStage:
    made = PaymentStage(postgres, database)
    await made.create_tables()
    return made


def kinds(payments: PaymentStage) -> list[tuple[str, str]]:
    return [(row["message_id"], row["kind"]) for row in payments.parked()]


def states(payments: PaymentStage) -> list[str]:
    return [row["state"] for row in payments.dead()]


@pytest.mark.parametrize("kind", [Trial, PlainTrial])
@pytest.mark.parametrize("retry", [ONCE, Retry(attempts=2, wait=fixed(0.2))], ids=["fresh", "parked"])
async def test_later_messages_of_a_dead_key_wait_and_come_after_it(
    payments: PaymentStage, kind: type[Trial | PlainTrial], retry: Retry
) -> None:
    handler = kind(retry=retry, dead_letter=HOLD)
    for number, what in enumerate(["ok", "forever", "ok", "ok"]):
        payments.send(number, what)
    payments.send("other", key=b"other")
    async with payments.run(handler) as run:
        await run.until(lambda: states(payments) == ["dead"], "the death")
        await run.until(payments.has(0, "other"), "the others")
        await run.until(lambda: len(payments.parked()) == 3, "what waits")
        payments.send(4)
        await run.until(lambda: len(payments.parked()) == 4, "a later one")
        assert kinds(payments) == [("p-1", "held"), ("p-2", "message"), ("p-3", "message"), ("p-4", "message")]
        assert (payments.parked()[0]["value"], payments.parked()[0]["due_at"]) == (None, None)
        await run.until(lambda: len(payments.published()) == 1, "its copy for the dead-letter topic")
        handler.healed = True
        assert (await redrive(payments.url, Selection())).redriven == 1
        await run.until(payments.has(1, 2, 3, 4), "all of the key")
        payments.send(5)
        await run.until(payments.has(5), "one that needs not wait any more")
    assert [number for number in payments.effects() if number != "other"] == ["0", "1", "2", "3", "4", "5"]
    assert (payments.parked(), states(payments)) == ([], ["resolved"])


async def test_dead_again_it_holds_again(payments: PaymentStage) -> None:
    payments.send(1, "forever")
    payments.send(2)
    async with payments.run(Trial(retry=ONCE, dead_letter=HOLD)) as run:
        await run.until(lambda: len(payments.parked()) == 2, "what waits")
        await redrive(payments.url, Selection())
        await run.until(lambda: len(payments.published()) == 2, "the second death")
    assert kinds(payments) == [("p-1", "held"), ("p-2", "message")]
    assert (states(payments), payments.effects()) == (["dead"], [])


@pytest.mark.parametrize("close", [resolve, discard])
async def test_closed_by_hand_it_lets_go(payments: PaymentStage, close: object) -> None:
    payments.send(1, "reject")
    payments.send(2)
    async with payments.run(Trial(dead_letter=HOLD)) as run:
        await run.until(lambda: len(payments.parked()) == 2, "what waits")
        await (resolve if close is resolve else discard)(payments.url, Selection(), note="seen to")
        await run.until(payments.has(2), "what waited")
        await run.until(lambda: not payments.parked(), "an empty lot")
        payments.send(3)
        await run.until(payments.has(3), "a later one")
        assert not payments.parked()
    assert payments.effects() == ["2", "3"]


async def test_it_holds_across_a_restart_and_is_never_run(payments: PaymentStage) -> None:
    payments.send(1, "reject")
    payments.send(2)
    async with payments.run(Trial(dead_letter=HOLD)) as run:
        await run.until(lambda: len(payments.parked()) == 2, "what waits")
    payments.forget_offsets()
    again = Trial(dead_letter=HOLD)
    payments.send(3)
    payments.send("other", key=b"other")
    async with payments.run(again) as run:
        await run.until(payments.has("other"), "the other key")
        await run.until(lambda: len(payments.parked()) == 3, "the later one")
    assert payments.effects() == ["other"]
    assert set(again.calls) == {"p-other"}


async def test_what_cannot_be_read_holds_its_key_within_its_own_group(payments: PaymentStage) -> None:
    payments.send(1, value=b"{")
    for number in range(2, 6):
        payments.send(number)
    payments.send("free", value=b"{", key=None)
    payments.send("other", key=b"other")
    async with payments.run(Trial(dead_letter=HOLD, brake=Brake(allowance=1000))) as run:
        await run.until(payments.has("other"), "the other key")
        await run.until(lambda: len(payments.parked()) == 5, "what waits")
        await discard(payments.url, Selection(), note="broken")
        await run.until(payments.has(2, 3, 4, 5), "what waited")
    assert payments.effects() == ["other", "2", "3", "4", "5"]


async def test_what_dies_behind_a_parked_one_holds_when_that_has_succeeded(payments: PaymentStage) -> None:
    payments.send(1, "fail:1")
    payments.send(2, value=b"{")
    payments.send(3)
    async with payments.run(Trial(dead_letter=HOLD, retry=Retry(attempts=3, wait=fixed(1.5)))) as run:
        await run.until(lambda: len(payments.parked()) == 3, "what waits")
        await run.until(payments.has(1), "the first")
        payments.send("other", key=b"other")
        await run.until(payments.has("other"), "another key")
        assert [(row["kind"], row["due_at"]) for row in payments.parked()] == [("held", None), ("message", None)]
        await run.until(lambda: len(payments.published()) == 1, "its copy for the dead-letter topic")
        assert payments.dead()[0]["reason"] == "undecodable"
        await discard(payments.url, Selection(), note="broken")
        await run.until(payments.has(3), "what waited")
    assert payments.effects() == ["1", "other", "3"]


async def test_two_dead_ones_of_a_key_come_back_in_order(payments: PaymentStage) -> None:
    handler = Trial(dead_letter=HOLD, retry=ONCE)
    payments.send(1, "forever")
    payments.send(2, "forever")
    payments.send(3)
    async with payments.run(handler) as run:
        await run.until(lambda: len(payments.parked()) == 3, "what waits")
        await discard(payments.url, Selection(), note="the first", by="ann")
        await run.until(lambda: states(payments) == ["discarded", "dead"], "the second death")
        assert payments.effects() == []
        handler.healed = True
        await redrive(payments.url, Selection())
        await run.until(payments.has(2, 3), "both")
    assert payments.effects() == ["2", "3"]


async def test_without_hold_key_nothing_waits(payments: PaymentStage) -> None:
    payments.send(1, "reject")
    payments.send(2)
    async with payments.run(Trial()) as run:
        await run.until(payments.has(2), "the next")
    assert payments.parked() == []


# resend="run".


@pytest.mark.parametrize("kind", [Trial, PlainTrial])
async def test_a_resend_of_a_dead_id_runs_and_resolves_the_letter(
    payments: PaymentStage, kind: type[Trial | PlainTrial]
) -> None:
    handler = kind(retry=ONCE, dead_letter=RUN)
    payments.send(1, "forever")
    async with payments.run(handler) as run:
        await run.until(lambda: states(payments) == ["dead"], "the death")
        handler.healed = True
        payments.send(1, "forever", partition=1)
        await run.until(payments.has(1), "the effect")
        await run.until(lambda: states(payments) == ["resolved"], "the letter")
        payments.send(1, "forever")
        await run.until(lambda: payments.committed() == 3, "a third copy")
    assert (payments.effects(), payments.outcome(1)) == (["1"], 1)
    assert "a resend was processed" in payments.dead()[0]["history"]


async def test_a_resend_that_fails_is_parked_and_then_resolves_the_letter(payments: PaymentStage) -> None:
    handler = Trial(retry=ONCE, dead_letter=RUN)
    payments.send(1, "forever")
    async with payments.run(handler) as run:
        await run.until(lambda: states(payments) == ["dead"], "the death")
    again = Trial(retry=Retry(attempts=3, wait=fixed(0.5)), dead_letter=RUN)
    payments.send(1, "forever")
    async with payments.run(again) as run:
        await run.until(lambda: len(payments.parked()) == 1, "the parking")
        assert payments.outcome(1) == 2
        assert [one.result for one in (await redrive(payments.url, Selection())).letters] == [RedriveResult.UNDER_WAY]
        again.healed = True
        await run.until(lambda: states(payments) == ["resolved"], "the letter")
    assert (payments.effects(), payments.parked()) == (["1"], [])


async def test_a_resend_that_dies_has_a_letter_of_its_own_and_delivered_again_it_is_skipped(
    payments: PaymentStage,
) -> None:
    handler = Trial(retry=ONCE, dead_letter=RUN)
    payments.send(1, "forever")
    payments.send(1, "forever")
    async with payments.run(handler) as run:
        await run.until(lambda: states(payments) == ["dead", "dead"], "two deaths")
        await run.until(lambda: payments.committed() == 2, "the offsets")
    calls = len(handler.calls["p-1"])
    payments.forget_offsets()
    async with payments.run(handler) as run:
        await run.until(lambda: payments.committed() == 2, "the offsets again")
        assert len(handler.calls["p-1"]) == calls
        handler.healed = True
        report = await redrive(payments.url, Selection())
        assert [one.result for one in report.letters] == [RedriveResult.REDRIVEN, RedriveResult.UNDER_WAY]
        await run.until(lambda: states(payments) == ["resolved", "resolved"], "both letters")
    assert (payments.effects(), payments.outcome(1)) == (["1"], 1)


async def test_by_default_a_resend_of_a_dead_id_is_skipped(payments: PaymentStage) -> None:
    handler = Trial(retry=ONCE)
    payments.send(1, "forever")
    async with payments.run(handler) as run:
        await run.until(lambda: states(payments) == ["dead"], "the death")
        handler.healed = True
        payments.send(1, "forever")
        await run.until(lambda: payments.committed() == 2, "the resend")
    assert (payments.effects(), states(payments)) == ([], ["dead"])


async def test_a_redriven_message_without_an_id_runs_though_its_id_has_died_since(payments: PaymentStage) -> None:
    payments.send(1, value=b"{")
    async with payments.run(Trial()) as run:
        await run.until(lambda: states(payments) == ["dead"], "the undecodable one")
    payments.send(1, "reject:0")
    body = b"""{"account":"k","amount":1,"kind":"reject:0"}"""
    async with payments.run(Trial(retry=ONCE)) as run:
        await run.until(lambda: states(payments) == ["dead", "dead"], "the rejected one")
    await redrive(payments.url, Selection(ids=[1]))
    payments.execute(f"UPDATE consumerkit_parked_messages SET value = '{body.decode()}'::bytea")

    class Healed(Trial):
        def decide(self, kind: str, message_id: str, attempt: int) -> None: ...

    async with payments.run(Healed(ordering=Ordering.NONE)) as run:
        await run.until(payments.has(1), "the effect")
        await run.until(lambda: states(payments) == ["resolved", "resolved"], "both letters")
    assert payments.outcome(1) == 1


async def test_a_resend_elsewhere_lets_go_of_the_key_that_its_letter_holds(payments: PaymentStage) -> None:
    handler = Trial(retry=ONCE, dead_letter=BOTH)
    payments.send(1, "forever")
    payments.send(2)
    async with payments.run(handler) as run:
        await run.until(lambda: len(payments.parked()) == 2, "what waits")
        handler.healed = True
        payments.send(1, "forever", partition=1)
        await run.until(payments.has(1), "the resend's effect")
        await run.until(lambda: states(payments) == ["resolved"], "the letter")
        await run.until(payments.has(2), "what waited")
        await run.until(lambda: not payments.parked(), "an empty lot")
    assert payments.effects() == ["1", "2"]


@pytest.mark.parametrize("kind", [Trial, PlainTrial])
async def test_a_resend_behind_the_dead_message_that_holds_its_key_runs_in_its_place(
    payments: PaymentStage, kind: type[Trial | PlainTrial]
) -> None:
    handler = kind(retry=ONCE, dead_letter=BOTH)
    payments.send(1, "forever")
    payments.send(2)
    async with payments.run(handler) as run:
        await run.until(lambda: len(payments.parked()) == 2, "what waits")
        handler.healed = True
        payments.send(1, "forever", headers=(("trace", b"again"),))
        payments.send(3)
        await run.until(payments.has(1, 2, 3), "all of the key")
        await run.until(lambda: payments.committed() == 4, "the offsets")
        payments.send(4)
        await run.until(payments.has(4), "one that needs not wait any more")
    assert payments.effects() == ["1", "2", "3", "4"]
    assert (payments.parked(), states(payments), payments.outcome(1)) == ([], ["resolved"], 1)


async def test_a_resend_that_dies_in_the_place_of_its_letter_holds_the_key_and_either_letter_can_be_redriven(
    payments: PaymentStage,
) -> None:
    handler = Trial(retry=ONCE, dead_letter=BOTH)
    payments.send(1, "forever")
    payments.send(2)
    async with payments.run(handler) as run:
        await run.until(lambda: len(payments.parked()) == 2, "what waits")
        payments.send(1, "forever")
        await run.until(lambda: states(payments) == ["dead", "dead"], "the second death")
        assert kinds(payments) == [("p-1", "held"), ("p-2", "message")]
        assert [row["offset"] for row in payments.parked()] == [2, 1]
        # The first letter holds nothing any more; by itself it would wait behind the second, which would wait for it.
        assert (await redrive(payments.url, Selection(ids=[1]))).redriven == 1
        await run.until(lambda: len(payments.published()) == 3, "the third death")
        assert [row["offset"] for row in payments.parked()] == [0, 1]
        handler.healed = True
        report = await redrive(payments.url, Selection())
        assert [one.result for one in report.letters] == [RedriveResult.REDRIVEN, RedriveResult.UNDER_WAY]
        await run.until(payments.has(1, 2), "both")
    assert (payments.effects(), states(payments), payments.parked()) == (["1", "2"], ["resolved", "resolved"], [])


async def test_a_resend_of_a_discarded_id_waits_its_turn_behind_one_that_holds(payments: PaymentStage) -> None:
    handler = Trial(dead_letter=BOTH, retry=Retry(attempts=2, wait=fixed(0.2)))
    payments.send(1, "forever")
    payments.send(2, "forever")
    payments.send(3)
    async with payments.run(handler) as run:
        await run.until(
            lambda: len(payments.parked()) == 3 and kinds(payments)[0] == ("p-1", "held"), "the first death"
        )
        await discard(payments.url, Selection(), note="the first")
        await run.until(lambda: len(payments.dead()) == 2, "the second death")
        assert kinds(payments) == [("p-2", "held"), ("p-3", "message")]
        handler.healed = True
        # The discarded one holds nothing: its resend waits its turn, behind the one that does.
        payments.send(1, "forever")
        await run.until(lambda: kinds(payments)[2:] == [("p-1", "message")], "the first one's resend")
        payments.send(2, "forever")
        await run.until(payments.has(1, 2, 3), "all of the key")
    assert payments.effects() == ["2", "3", "1"]
    assert (states(payments), payments.parked()) == (["discarded", "resolved"], [])
