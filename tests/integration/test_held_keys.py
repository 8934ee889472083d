"""`hold_key`: what follows a dead message of its key waits until a person decides. `resend`: dead IDs sent again."""

import pytest

from consumerkit import Brake, DeadLetter, Ordering, Retry, fixed
from consumerkit.redrive import Fate, Selection, discard, redrive, resolve
from tests.integration.yard import DEAD, PlainTrial, Trial, Yard
from tests.services import PostgresServer

HOLD = DeadLetter(DEAD, hold_key=True)
RUN = DeadLetter(DEAD, resend="run")
BOTH = DeadLetter(DEAD, hold_key=True, resend="run")
ONCE = Retry(attempts=1)


@pytest.fixture
async def yard(postgres: PostgresServer, database: str) -> Yard:
    made = Yard(postgres, database)
    await made.create_tables()
    return made


def kinds(yard: Yard) -> list[tuple[str, str]]:
    return [(row["message_id"], row["kind"]) for row in yard.parked()]


def states(yard: Yard) -> list[str]:
    return [row["state"] for row in yard.dead()]


@pytest.mark.parametrize("kind", [Trial, PlainTrial])
@pytest.mark.parametrize("retry", [ONCE, Retry(attempts=2, wait=fixed(0.2))], ids=["fresh", "parked"])
async def test_later_messages_of_a_dead_key_wait_and_come_after_it(
    yard: Yard, kind: type[Trial | PlainTrial], retry: Retry
) -> None:
    handler = kind(retry=retry, dead_letter=HOLD)
    for number, what in enumerate(["ok", "forever", "ok", "ok"]):
        yard.send(number, what)
    yard.send("other", key=b"other")
    async with yard.run(handler) as run:
        await run.until(lambda: states(yard) == ["dead"], "the death")
        await run.until(yard.has(0, "other"), "the others")
        await run.until(lambda: len(yard.parked()) == 3, "what waits")
        yard.send(4)
        await run.until(lambda: len(yard.parked()) == 4, "a later one")
        assert kinds(yard) == [("p-1", "held"), ("p-2", "message"), ("p-3", "message"), ("p-4", "message")]
        assert (yard.parked()[0]["value"], yard.parked()[0]["due_at"]) == (None, None)
        assert len(yard.published()) == 1
        handler.healed = True
        assert (await redrive(yard.url, Selection())).redriven == 1
        await run.until(yard.has(1, 2, 3, 4), "all of the key")
        yard.send(5)
        await run.until(yard.has(5), "one that needs not wait any more")
    assert [number for number in yard.effects() if number != "other"] == ["0", "1", "2", "3", "4", "5"]
    assert (yard.parked(), states(yard)) == ([], ["resolved"])


async def test_dead_again_it_holds_again(yard: Yard) -> None:
    yard.send(1, "forever")
    yard.send(2)
    async with yard.run(Trial(retry=ONCE, dead_letter=HOLD)) as run:
        await run.until(lambda: len(yard.parked()) == 2, "what waits")
        await redrive(yard.url, Selection())
        await run.until(lambda: len(yard.published()) == 2, "the second death")
    assert kinds(yard) == [("p-1", "held"), ("p-2", "message")]
    assert (states(yard), yard.effects()) == (["dead"], [])


@pytest.mark.parametrize("close", [resolve, discard])
async def test_closed_by_hand_it_lets_go(yard: Yard, close: object) -> None:
    yard.send(1, "reject")
    yard.send(2)
    async with yard.run(Trial(dead_letter=HOLD)) as run:
        await run.until(lambda: len(yard.parked()) == 2, "what waits")
        await (resolve if close is resolve else discard)(yard.url, Selection(), note="seen to")
        await run.until(yard.has(2), "what waited")
        await run.until(lambda: not yard.parked(), "an empty lot")
        yard.send(3)
        await run.until(yard.has(3), "a later one")
        assert not yard.parked()
    assert yard.effects() == ["2", "3"]


async def test_it_holds_across_a_restart_and_is_never_run(yard: Yard) -> None:
    yard.send(1, "reject")
    yard.send(2)
    async with yard.run(Trial(dead_letter=HOLD)) as run:
        await run.until(lambda: len(yard.parked()) == 2, "what waits")
    yard.forget_offsets()
    again = Trial(dead_letter=HOLD)
    yard.send(3)
    yard.send("other", key=b"other")
    async with yard.run(again) as run:
        await run.until(yard.has("other"), "the other key")
        await run.until(lambda: len(yard.parked()) == 3, "the later one")
    assert yard.effects() == ["other"]
    assert set(again.calls) == {"p-other"}


async def test_what_cannot_be_read_holds_its_key_within_its_own_group(yard: Yard) -> None:
    yard.send(1, value=b"{")
    for number in range(2, 6):
        yard.send(number)
    yard.send("free", value=b"{", key=None)
    yard.send("other", key=b"other")
    async with yard.run(Trial(dead_letter=HOLD, brake=Brake(allowance=1000))) as run:
        await run.until(yard.has("other"), "the other key")
        await run.until(lambda: len(yard.parked()) == 5, "what waits")
        await discard(yard.url, Selection(), note="broken")
        await run.until(yard.has(2, 3, 4, 5), "what waited")
    assert yard.effects() == ["other", "2", "3", "4", "5"]


async def test_what_dies_behind_a_parked_one_holds_when_that_has_succeeded(yard: Yard) -> None:
    yard.send(1, "fail:1")
    yard.send(2, value=b"{")
    yard.send(3)
    async with yard.run(Trial(dead_letter=HOLD, retry=Retry(attempts=3, wait=fixed(1.5)))) as run:
        await run.until(lambda: len(yard.parked()) == 3, "what waits")
        await run.until(yard.has(1), "the first")
        yard.send("other", key=b"other")
        await run.until(yard.has("other"), "another key")
        assert [(row["kind"], row["due_at"]) for row in yard.parked()] == [("held", None), ("message", None)]
        assert (len(yard.published()), yard.dead()[0]["reason"]) == (1, "undecodable")
        await discard(yard.url, Selection(), note="broken")
        await run.until(yard.has(3), "what waited")
    assert yard.effects() == ["1", "other", "3"]


async def test_two_dead_ones_of_a_key_come_back_in_order(yard: Yard) -> None:
    handler = Trial(dead_letter=HOLD, retry=ONCE)
    yard.send(1, "forever")
    yard.send(2, "forever")
    yard.send(3)
    async with yard.run(handler) as run:
        await run.until(lambda: len(yard.parked()) == 3, "what waits")
        await discard(yard.url, Selection(), note="the first", by="ann")
        await run.until(lambda: states(yard) == ["discarded", "dead"], "the second death")
        assert yard.effects() == []
        handler.healed = True
        await redrive(yard.url, Selection())
        await run.until(yard.has(2, 3), "both")
    assert yard.effects() == ["2", "3"]


async def test_without_hold_key_nothing_waits(yard: Yard) -> None:
    yard.send(1, "reject")
    yard.send(2)
    async with yard.run(Trial()) as run:
        await run.until(yard.has(2), "the next")
    assert yard.parked() == []


# resend="run".


@pytest.mark.parametrize("kind", [Trial, PlainTrial])
async def test_a_resend_of_a_dead_id_runs_and_resolves_the_letter(yard: Yard, kind: type[Trial | PlainTrial]) -> None:
    handler = kind(retry=ONCE, dead_letter=RUN)
    yard.send(1, "forever")
    async with yard.run(handler) as run:
        await run.until(lambda: states(yard) == ["dead"], "the death")
        handler.healed = True
        yard.send(1, "forever", partition=1)
        await run.until(yard.has(1), "the effect")
        await run.until(lambda: states(yard) == ["resolved"], "the letter")
        yard.send(1, "forever")
        await run.until(lambda: yard.committed() == 3, "a third copy")
    assert (yard.effects(), yard.outcome(1)) == (["1"], 1)
    assert "a resend was processed" in yard.dead()[0]["history"]


async def test_a_resend_that_fails_is_parked_and_then_resolves_the_letter(yard: Yard) -> None:
    handler = Trial(retry=ONCE, dead_letter=RUN)
    yard.send(1, "forever")
    async with yard.run(handler) as run:
        await run.until(lambda: states(yard) == ["dead"], "the death")
    again = Trial(retry=Retry(attempts=3, wait=fixed(0.5)), dead_letter=RUN)
    yard.send(1, "forever")
    async with yard.run(again) as run:
        await run.until(lambda: len(yard.parked()) == 1, "the parking")
        assert yard.outcome(1) == 2
        assert [one.fate for one in (await redrive(yard.url, Selection())).letters] == [Fate.UNDER_WAY]
        again.healed = True
        await run.until(lambda: states(yard) == ["resolved"], "the letter")
    assert (yard.effects(), yard.parked()) == (["1"], [])


async def test_a_resend_that_dies_has_a_letter_of_its_own_and_delivered_again_it_is_skipped(yard: Yard) -> None:
    handler = Trial(retry=ONCE, dead_letter=RUN)
    yard.send(1, "forever")
    yard.send(1, "forever")
    async with yard.run(handler) as run:
        await run.until(lambda: states(yard) == ["dead", "dead"], "two deaths")
        await run.until(lambda: yard.committed() == 2, "the offsets")
    calls = len(handler.calls["p-1"])
    yard.forget_offsets()
    async with yard.run(handler) as run:
        await run.until(lambda: yard.committed() == 2, "the offsets again")
        assert len(handler.calls["p-1"]) == calls
        handler.healed = True
        report = await redrive(yard.url, Selection())
        assert [one.fate for one in report.letters] == [Fate.REDRIVEN, Fate.UNDER_WAY]
        await run.until(lambda: states(yard) == ["resolved", "resolved"], "both letters")
    assert (yard.effects(), yard.outcome(1)) == (["1"], 1)


async def test_by_default_a_resend_of_a_dead_id_is_skipped(yard: Yard) -> None:
    handler = Trial(retry=ONCE)
    yard.send(1, "forever")
    async with yard.run(handler) as run:
        await run.until(lambda: states(yard) == ["dead"], "the death")
        handler.healed = True
        yard.send(1, "forever")
        await run.until(lambda: yard.committed() == 2, "the resend")
    assert (yard.effects(), states(yard)) == ([], ["dead"])


async def test_a_redriven_message_without_an_id_runs_though_its_id_has_died_since(yard: Yard) -> None:
    yard.send(1, value=b"{")
    async with yard.run(Trial()) as run:
        await run.until(lambda: states(yard) == ["dead"], "the undecodable one")
    yard.send(1, "reject:0")
    body = b"""{"account":"k","amount":1,"kind":"reject:0"}"""
    async with yard.run(Trial(retry=ONCE)) as run:
        await run.until(lambda: states(yard) == ["dead", "dead"], "the rejected one")
    await redrive(yard.url, Selection(ids=[1]))
    yard.execute(f"UPDATE consumerkit_parked_messages SET value = '{body.decode()}'::bytea")

    class Healed(Trial):
        def decide(self, kind: str, message_id: str, attempt: int) -> None: ...

    async with yard.run(Healed(ordering=Ordering.NONE)) as run:
        await run.until(yard.has(1), "the effect")
        await run.until(lambda: states(yard) == ["resolved", "resolved"], "both letters")
    assert yard.outcome(1) == 1


async def test_a_resend_elsewhere_lets_go_of_the_key_that_its_letter_holds(yard: Yard) -> None:
    handler = Trial(retry=ONCE, dead_letter=BOTH)
    yard.send(1, "forever")
    yard.send(2)
    async with yard.run(handler) as run:
        await run.until(lambda: len(yard.parked()) == 2, "what waits")
        handler.healed = True
        yard.send(1, "forever", partition=1)
        await run.until(yard.has(1), "the resend's effect")
        await run.until(lambda: states(yard) == ["resolved"], "the letter")
        await run.until(yard.has(2), "what waited")
        await run.until(lambda: not yard.parked(), "an empty lot")
    assert yard.effects() == ["1", "2"]


@pytest.mark.parametrize("kind", [Trial, PlainTrial])
async def test_a_resend_behind_the_dead_message_that_holds_its_key_runs_in_its_place(
    yard: Yard, kind: type[Trial | PlainTrial]
) -> None:
    handler = kind(retry=ONCE, dead_letter=BOTH)
    yard.send(1, "forever")
    yard.send(2)
    async with yard.run(handler) as run:
        await run.until(lambda: len(yard.parked()) == 2, "what waits")
        handler.healed = True
        yard.send(1, "forever", headers=(("trace", b"again"),))
        yard.send(3)
        await run.until(yard.has(1, 2, 3), "all of the key")
        await run.until(lambda: yard.committed() == 4, "the offsets")
        yard.send(4)
        await run.until(yard.has(4), "one that needs not wait any more")
    assert yard.effects() == ["1", "2", "3", "4"]
    assert (yard.parked(), states(yard), yard.outcome(1)) == ([], ["resolved"], 1)


async def test_a_resend_that_dies_in_the_place_of_its_letter_holds_the_key_and_either_letter_can_be_redriven(
    yard: Yard,
) -> None:
    handler = Trial(retry=ONCE, dead_letter=BOTH)
    yard.send(1, "forever")
    yard.send(2)
    async with yard.run(handler) as run:
        await run.until(lambda: len(yard.parked()) == 2, "what waits")
        yard.send(1, "forever")
        await run.until(lambda: states(yard) == ["dead", "dead"], "the second death")
        assert kinds(yard) == [("p-1", "held"), ("p-2", "message")]
        assert [row["offset"] for row in yard.parked()] == [2, 1]
        # The first letter holds nothing any more; by itself it would wait behind the second, which would wait for it.
        assert (await redrive(yard.url, Selection(ids=[1]))).redriven == 1
        await run.until(lambda: len(yard.published()) == 3, "the third death")
        assert [row["offset"] for row in yard.parked()] == [0, 1]
        handler.healed = True
        report = await redrive(yard.url, Selection())
        assert [one.fate for one in report.letters] == [Fate.REDRIVEN, Fate.UNDER_WAY]
        await run.until(yard.has(1, 2), "both")
    assert (yard.effects(), states(yard), yard.parked()) == (["1", "2"], ["resolved", "resolved"], [])


async def test_a_resend_of_a_discarded_id_waits_its_turn_behind_one_that_holds(yard: Yard) -> None:
    handler = Trial(dead_letter=BOTH, retry=Retry(attempts=2, wait=fixed(0.2)))
    yard.send(1, "forever")
    yard.send(2, "forever")
    yard.send(3)
    async with yard.run(handler) as run:
        await run.until(lambda: len(yard.parked()) == 3 and kinds(yard)[0] == ("p-1", "held"), "the first death")
        await discard(yard.url, Selection(), note="the first")
        await run.until(lambda: len(yard.dead()) == 2, "the second death")
        assert kinds(yard) == [("p-2", "held"), ("p-3", "message")]
        handler.healed = True
        # The discarded one holds nothing: its resend waits its turn, behind the one that does.
        yard.send(1, "forever")
        await run.until(lambda: kinds(yard)[2:] == [("p-1", "message")], "the first one's resend")
        yard.send(2, "forever")
        await run.until(yard.has(1, 2, 3), "all of the key")
    assert yard.effects() == ["2", "3", "1"]
    assert (states(yard), yard.parked()) == (["discarded", "resolved"], [])
