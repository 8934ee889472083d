"""Redriven dead letters: once, in order, and dead again with their history; and letters closed by hand."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest

from consumerkit import Brake, Ordering, Retry, fixed
from consumerkit.message import TopicPartition
from consumerkit.redrive import RedriveResult, Report, Selection, State, batch, discard, export, redrive, resolve
from consumerkit.redrive import run as run_module
from consumerkit.storage import fence
from consumerkit.storage.database import Database
from consumerkit.storage.parking.listing import ParkedSelection, listed
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.payments import TOPIC, PaymentStage, PlainTrial, Trial
from tests.services import PostgresServer
from tests.variants import further_cases

ONCE = Retry(attempts=1)
FREE = Brake(allowance=1000)


@pytest.fixture
async def payments(postgres: PostgresServer, database: str) -> PaymentStage:
    made = PaymentStage(postgres, database)
    await made.create_tables()
    return made


def states(payments: PaymentStage) -> list[str]:
    return [row["state"] for row in payments.dead()]


def results(report: Report) -> list[RedriveResult]:
    return [letter.result for letter in report.letters]


async def dead(payments: PaymentStage, handler: Trial | PlainTrial, count: int) -> None:
    """Let so many messages die."""
    async with payments.run(handler) as run:
        await run.until(lambda: states(payments) == ["dead"] * count, f"{count} dead letters")


@pytest.mark.parametrize("kind", [Trial, PlainTrial])
async def test_a_redriven_message_runs_once_and_its_letter_is_resolved(
    payments: PaymentStage, kind: type[Trial | PlainTrial]
) -> None:
    handler = kind(retry=ONCE)
    payments.send(1, "forever", headers=(("trace", b"\xff\x00"), ("trace", None)))
    await dead(payments, handler, 1)
    report = await redrive(payments.url, Selection(ids=[1]), by="ann", note="it works again")
    assert (report.redriven, report.done, report.left) == (1, 1, ())
    (parked,) = payments.parked()
    assert (parked["dead_letter"], parked["attempts"], parked["value"]) == (1, 0, payments.dead()[0]["value"])
    assert payments.outcome(1) == 2
    handler.healed = True
    async with payments.run(handler) as run:
        await run.until(payments.has(1), "the effect")
        await run.until(lambda: states(payments) == ["resolved"], "the letter")
    assert (payments.effects(), payments.parked(), payments.outcome(1)) == (["1"], [], 1)
    (letter,) = payments.dead()
    redriven, resolved = json.loads(letter["history"])
    assert (redriven["what"], redriven["by"], redriven["note"]) == ("redriven", "ann", "it works again")
    assert (redriven["reason"], redriven["error"], redriven["attempts"]) == ("exhausted", "for ever", 1)
    assert (resolved["what"], resolved["by"], resolved["note"]) == ("resolved", "credit", "processed")
    (action,) = payments.rows("SELECT * FROM consumerkit_operator_actions")
    assert (action["actor"], action["action"], action["consumer"]) == ("ann", "redrive", letter["consumer"])
    assert json.loads(action["details"])["letters"] == [1]


@pytest.mark.parametrize("work", [redrive, resolve, discard])
async def test_an_empty_list_of_ids_means_none_and_not_all(payments: PaymentStage, work: Callable[..., Any]) -> None:
    """As a program passes it that has looked for some and found none."""
    payments.send(1, "forever")
    await dead(payments, Trial(retry=ONCE), 1)
    report = await work(payments.url, Selection(ids=[]), by="ann", note="none of them")
    assert (report.letters, report.done) == ((), 0)
    assert (states(payments), payments.parked()) == (["dead"], [])
    assert [letter async for letter in export(payments.url, Selection(ids=[]))] == []


async def test_an_empty_list_of_parked_ids_means_none_too(payments: PaymentStage) -> None:
    payments.send(1, "fail:9")
    async with payments.run(Trial(retry=Retry(attempts=5, wait=fixed(3600)))) as run:
        await run.until(lambda: len(payments.parked()) == 1, "the parking")
    database = Database(payments.url)
    for selection, count in ((ParkedSelection(ids=[]), 0), (ParkedSelection(), 1)):
        assert len(await database.run(partial(listed, tables=DEFAULT_TABLES, selection=selection))) == count
    await database.dispose()


async def test_a_running_owner_finds_it_by_itself(payments: PaymentStage) -> None:
    handler = Trial(retry=ONCE)
    payments.send(1, "forever")
    async with payments.run(handler) as run:
        await run.until(lambda: states(payments) == ["dead"], "the death")
        handler.healed = True
        await redrive(run.worker.database, Selection())
        await run.until(payments.has(1), "the effect")
        await run.until(lambda: states(payments) == ["resolved"], "the letter")


async def test_dead_again_is_the_same_letter_with_its_history_and_published_again(payments: PaymentStage) -> None:
    handler = Trial(retry=ONCE)
    payments.send(1, "forever")
    async with payments.run(handler) as run:
        await run.until(lambda: len(payments.published()) == 1, "the first death")
        for turn in (2, 3):
            await redrive(payments.url, Selection(), by=f"person {turn}")
            await run.until(lambda turn=turn: len(payments.published()) == turn, "the next death")  # type: ignore[misc]
    (letter,) = payments.dead()
    assert (letter["state"], letter["redrives"], letter["attempts"]) == ("dead", 2, 1)
    assert [entry["by"] for entry in json.loads(letter["history"])] == ["person 2", "person 3"]
    first, _, last = payments.published()
    assert first.header("consumerkit-dlq-redrives") is None
    assert last.header("consumerkit-dlq-redrives") == b"2"
    history = json.loads(last.header("consumerkit-dlq-history") or b"")
    assert [entry["error"] for entry in history] == ["for ever", "for ever"]
    assert (last.key, last.value) == (first.key, first.value)
    assert (payments.parked(), payments.outcome(1)) == ([], 3)


async def test_the_cap_on_redrives_leaves_a_letter(payments: PaymentStage) -> None:
    handler = Trial(retry=ONCE)
    payments.send(1, "forever")
    async with payments.run(handler) as run:
        await run.until(lambda: states(payments) == ["dead"], "the death")
        await redrive(payments.url, Selection())
        await run.until(lambda: len(payments.published()) == 2, "the second death")
    assert results(await redrive(payments.url, Selection(), max_redrives=1)) == [RedriveResult.TOO_OFTEN]
    assert results(await redrive(payments.url, Selection(), max_redrives=2)) == [RedriveResult.REDRIVEN]


async def test_one_that_succeeded_since_is_not_run_and_reported(payments: PaymentStage) -> None:
    payments.send(1, "reject")
    await dead(payments, Trial(), 1)
    payments.execute("UPDATE consumerkit_processed_messages SET outcome = 1")
    report = await redrive(payments.url, Selection())
    assert (results(report), report.redriven) == ([RedriveResult.SUCCEEDED], 0)
    assert (states(payments), payments.parked()) == (["resolved"], [])


async def test_a_dry_run_tells_and_changes_nothing(payments: PaymentStage) -> None:
    payments.send(1, "reject")
    payments.send(2, value=b"{", key=b"other")
    await dead(payments, Trial(), 2)
    before = payments.dead()
    report = await redrive(payments.url, Selection(), dry_run=True)
    assert (results(report), report.dry_run) == ([RedriveResult.REDRIVEN, RedriveResult.REDRIVEN], True)
    assert (payments.dead(), payments.parked()) == (before, [])
    assert payments.rows("SELECT * FROM consumerkit_operator_actions") == []


async def test_an_undecodable_one_runs_once_the_handler_can_read_it(payments: PaymentStage) -> None:
    payments.send(1, value=b'{"account": "a", "amount": "many", "kind": "ok"}')
    await dead(payments, Trial(), 1)
    assert payments.dead()[0]["reason"] == "undecodable"
    await redrive(payments.url, Selection())
    payments.execute(
        "UPDATE consumerkit_parked_messages "
        "SET value = convert_to(replace(convert_from(value, 'utf8'), '\"many\"', '7'), 'utf8')"
    )
    async with payments.run(Trial()) as run:
        await run.until(payments.has(1), "the effect")
        await run.until(lambda: states(payments) == ["resolved"], "the letter")
    assert payments.outcome(1) == 1


async def test_an_undecodable_one_that_stays_so_is_dead_again(payments: PaymentStage) -> None:
    payments.send(1, value=b"{")
    await dead(payments, Trial(), 1)
    await redrive(payments.url, Selection())
    async with payments.run(Trial()) as run:
        await run.until(lambda: len(payments.published()) == 2, "the second death")
    assert [(row["state"], row["redrives"], row["value"]) for row in payments.dead()] == [("dead", 1, b"{")]
    assert payments.parked() == []


async def test_a_conflict_comes_back_under_a_new_id_or_not_at_all(payments: PaymentStage) -> None:
    payments.send(1)
    payments.send(1, value=b'{"account": "other", "amount": 5, "kind": "ok"}')
    async with payments.run(Trial()) as run:
        await run.until(lambda: states(payments) == ["dead"], "the conflict")
    assert results(await redrive(payments.url, Selection())) == [RedriveResult.CONFLICT]
    assert results(await redrive(payments.url, Selection(), new_id=True)) == [RedriveResult.REDRIVEN]
    async with payments.run(Trial()) as run:
        await run.until(lambda: states(payments) == ["resolved"], "the letter")
    assert payments.effects() == ["1", "1#redrive-1"]
    assert (payments.outcome(1), payments.outcome("1#redrive-1")) == (1, 1)


async def test_an_oversized_one_is_left_with_the_way_out(payments: PaymentStage) -> None:
    payments.send(1)
    await dead(payments, Trial(size_limit=10), 1)
    report = await redrive(payments.url, Selection())
    assert results(report) == [RedriveResult.OVERSIZED]
    assert "send it again" in report.left[0].result.way_out


async def test_an_erased_one_is_left(payments: PaymentStage) -> None:
    payments.send(1, "reject")
    await dead(payments, Trial(), 1)
    payments.execute("UPDATE consumerkit_dead_letters SET erased_at = now(), value = NULL")
    assert results(await redrive(payments.url, Selection())) == [RedriveResult.ERASED]


@pytest.mark.parametrize("ordering", [Ordering.KEY, *further_cases(Ordering.PARTITION, Ordering.NONE)])
async def test_letters_come_back_in_the_order_of_the_log(payments: PaymentStage, ordering: Ordering) -> None:
    handler = Trial(retry=ONCE, brake=FREE, ordering=ordering)
    numbers = range(60)
    for number in numbers:
        payments.send(number, "forever", key=b"k%d" % (number % 3), partition=number % 2)
    await dead(payments, handler, len(numbers))
    handler.healed = True
    await redrive(payments.url, Selection())
    async with payments.run(handler) as run:
        await run.until(lambda: len(payments.effects()) == len(numbers), "everything")
        await run.until(lambda: set(states(payments)) == {"resolved"}, "the letters")
    effects = [int(number) for number in payments.effects()]
    assert sorted(effects) == [*numbers]
    if ordering is Ordering.NONE:
        return
    for part in range(6 if ordering is Ordering.KEY else 2):
        modulus = 6 if ordering is Ordering.KEY else 2
        assert [n for n in effects if n % modulus == part] == [n for n in numbers if n % modulus == part]


async def test_twice_at_once_redrives_each_once(payments: PaymentStage) -> None:
    handler = Trial(retry=ONCE, brake=FREE)
    numbers = range(60)
    for number in numbers:
        payments.send(number, "forever", key=b"k%d" % (number % 5))
    await dead(payments, handler, len(numbers))
    handler.healed = True
    async with payments.run(handler) as run:
        reports = await asyncio.gather(
            *(redrive(payments.url, Selection(), by=f"person {n}", rate=40) for n in range(3))
        )
        assert sum(report.redriven for report in reports) == len(numbers)
        await run.until(lambda: len(payments.effects()) == len(numbers), "everything")
        await run.until(lambda: set(states(payments)) == {"resolved"}, "the letters")
    effects = [int(number) for number in payments.effects()]
    for key in range(5):
        assert [n for n in effects if n % 5 == key] == [n for n in numbers if n % 5 == key]
    assert {row["redrives"] for row in payments.dead()} == {1}


async def test_a_transaction_of_the_owner_is_waited_for_and_a_busy_partition_left(
    payments: PaymentStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    payments.send(1, "reject", partition=0)
    payments.send(2, "reject", partition=1)
    await dead(payments, Trial(), 2)
    monkeypatch.setattr(batch, "FENCE_WAIT", 0.2)
    monkeypatch.setattr(run_module, "TRIES", 2)
    lock = fence.number(DEFAULT_TABLES.within("public"), payments.dead()[0]["consumer"], TopicPartition(TOPIC, 0))
    with psycopg.connect(payments.postgres.dsn(payments.database)) as owner:
        owner.execute("SELECT pg_advisory_xact_lock_shared(%s)", (lock,))
        report = await redrive(payments.url, Selection())
        assert (report.busy, report.redriven) == ((TopicPartition(TOPIC, 0),), 1)
    report = await redrive(payments.url, Selection())
    assert (report.busy, report.redriven) == ((), 1)


async def test_the_rate_is_kept(payments: PaymentStage) -> None:
    for number in range(30):
        payments.send(number, "reject")
    await dead(payments, Trial(brake=FREE), 30)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await redrive(payments.url, Selection(), rate=20)
    assert 1.0 < loop.time() - began < 6


async def test_resolved_by_hand_a_resend_is_a_duplicate(payments: PaymentStage) -> None:
    payments.send(1, "reject")
    await dead(payments, Trial(), 1)
    report = await resolve(payments.url, Selection(), note="credited by hand", by="bob")
    assert results(report) == [RedriveResult.RESOLVED]
    assert (states(payments), payments.outcome(1)) == (["resolved"], 1)
    (entry,) = json.loads(payments.dead()[0]["history"])
    assert (entry["what"], entry["by"], entry["note"]) == ("resolved", "bob", "credited by hand")
    assert results(await redrive(payments.url, Selection(ids=[1]))) == [RedriveResult.NOT_DEAD]


async def test_discarded_an_id_stays_dead(payments: PaymentStage) -> None:
    payments.send(1, "reject")
    await dead(payments, Trial(), 1)
    assert results(await discard(payments.url, Selection(ids=[1, 9]), note="a test")) == [
        RedriveResult.UNKNOWN,
        RedriveResult.DISCARDED,
    ]
    assert (states(payments), payments.outcome(1)) == (["discarded"], 3)


async def test_groups_of_errors_are_chosen_by_type_and_place(payments: PaymentStage) -> None:
    payments.send(1, "forever", key=b"a")
    payments.send(2, "reject", key=b"b")
    payments.send(3, "forever", key=b"c")
    await dead(payments, Trial(retry=ONCE), 3)
    places = {row["message_id"]: row["place"] for row in payments.dead()}
    assert places["p-1"] == places["p-3"] != places["p-2"]
    assert places["p-1"].startswith("tests/integration/payments.py:")
    assert places["p-1"].endswith(" in decide")
    number = next(row["id"] for row in payments.dead() if row["message_id"] == "p-1")
    report = await redrive(payments.url, Selection(like=number))
    assert sorted(letter.message_id for letter in report.letters) == ["p-1", "p-3"]


async def test_whole_letters_are_exported(payments: PaymentStage) -> None:
    payments.send(1, "reject", headers=(("raw", b"\xff"),))
    payments.send(2, value=b"\xff\xfe", key=b"b")
    await dead(payments, Trial(), 2)
    letters = [letter async for letter in export(payments.url, Selection())]
    by_id = {letter["offset"]: letter for letter in letters}
    assert by_id[0]["key"] == "k"
    assert json.loads(by_id[0]["value"])["kind"] == "reject"
    assert ["raw", {"base64": "/w=="}] in by_id[0]["headers"]
    assert by_id[1]["value"] == {"base64": "//4="}
    assert json.loads(json.dumps(letters)) == letters
    assert [one async for one in export(payments.url, Selection(), states=[State.DISCARDED])] == []
