"""The steps of a message are undone once the message is dead."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import update

from consumerkit import (
    AlreadyDone,
    Defer,
    Effects,
    IdempotencyKey,
    PlainEffects,
    Reject,
    Retry,
    fixed,
    message_status,
    step,
)
from consumerkit.events import MessageDeadLettered, StepAwaited, StepUndoFailed, StepUndone
from consumerkit.monitoring.backlog import measure
from consumerkit.operations.erasure import erase
from consumerkit.redrive import Selection, discard, redrive, resolve
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.tables import DEFAULT_TABLES, Tables
from tests.integration.memory_stage import MemoryStage
from tests.integration.stage import until_seen
from tests.integration.step_stage import (
    LEDGER,
    LETTERS,
    LOT,
    STEPS,
    PlainRefunding,
    Provider,
    ProviderDown,
    Refunding,
    provider,
    rejects,
    rows,
    stage,
    until,
)
from tests.integration.test_sealing import Mirror

__all__ = ["provider", "stage"]

Kind = type[Refunding] | type[PlainRefunding]


@pytest.fixture
def kind(stage: MemoryStage) -> Kind:
    """A coroutine on PostgreSQL, a plain function on SQLite: each database and each way has its turn."""
    return PlainRefunding if stage.url.startswith("sqlite") else Refunding


def states(count: int, *wanted: str) -> Any:
    """A condition on the record of steps: so many rows, in these states and no others."""
    return lambda found: len(found) == count and {row.state for row in found} == set(wanted)


def by_number(found: list[Any]) -> list[Any]:
    """Rows in the order of their numbers."""
    return sorted(found, key=lambda row: row.id)


def redriven_in_vain(found: list[Any]) -> bool:
    """Whether the first letter was redriven, and is dead again."""
    first = by_number(found)[0]
    return bool(first.redrives == 1 and first.state == "dead")


class Asking(Refunding):
    """Asks the other side whether a call in doubt was done."""

    @step
    async def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)

    @charge.confirm
    async def find(self, key: IdempotencyKey, value: bytes) -> AlreadyDone | None:
        self.provider.asked.append(key)
        return AlreadyDone("charge of " + value.decode()) if value.decode() in self.provider.charges() else None

    @charge.undo
    async def refund(self, key: IdempotencyKey, done: str, value: bytes) -> None:
        assert done == f"charge of {value.decode()}"
        self.provider.charge(key, b"refunded-" + value)


class Voiding(Refunding):
    """Takes back by the key whatever was done."""

    @step
    async def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)

    @charge.undo(in_doubt=True)
    async def refund(self, key: IdempotencyKey, done: str | None, value: bytes) -> None:
        assert done is None
        self.provider.charge(key, b"refunded-" + value)


@pytest.mark.parametrize(
    "kind, charged, undone, called",
    [
        (Asking, True, ["refunded-v0", "released-v0"], [True, True]),
        (Asking, False, ["released-v0"], [False, True]),
        (Voiding, False, ["refunded-v0", "released-v0"], [True, True]),
        (Refunding, False, ["released-v0"], [True]),
    ],
)
async def test_a_step_in_doubt_is_settled_when_its_message_dies(
    stage: MemoryStage, provider: Provider, kind: type[Refunding], charged: bool, undone: list[str], called: list[bool]
) -> None:
    """The call is cut off, before or after it had its effect, and the message dies of that."""

    async def hangs(self: Any, key: IdempotencyKey, value: bytes) -> str:
        if charged:
            self.provider.charge(key, value)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    hangs.__name__ = "charge"
    source = kind.charge
    cut: Any = type(source)(hangs, None, 0.05)
    cut.asks, cut.undoes, cut.undo_in_doubt = source.asks, source.undoes, source.undo_in_doubt
    cut.undo_retry = Retry(attempts=9, wait=fixed(0.01))  # it has the step's own deadline, which is short here
    cls: Any = type("Cut", (kind,), {"charge": cut, "retry": Retry(attempts=1)})
    stage.append(0, value=b"v0", partition=0)
    async with stage.run(cls(provider)) as run:
        [letter] = await until(stage, run, LETTERS, lambda found: len(found) == 1)
        await run.until(lambda: len(run.seen(StepUndone)) == len(called), "what can be undone is undone")
        assert [one.called for one in run.seen(StepUndone)] == called
    assert provider.charges() == ["reserved-v0", *(["v0"] if charged else []), *undone]
    found = {row.step: row.state for row in await rows(stage)}
    assert ("step 'charge' may have happened: look for the key" in letter.error) == (kind is Refunding)
    assert found == {"reserve": "undone", "charge": "started" if kind is Refunding else "undone"}


@pytest.mark.parametrize("exhausted", [False, True])
async def test_a_dead_messages_steps_are_undone_in_reverse_order(
    stage: MemoryStage, provider: Provider, kind: Kind, exhausted: bool
) -> None:
    def fails(event: bytes) -> None:
        if event == b"v1":
            if exhausted:
                raise ProviderDown("as asked")
            raise Reject("as asked")

    for number in range(3):
        stage.append(number, key=None, value=b"v%d" % number, partition=0)
    async with stage.run(kind(provider, in_handle=fails)) as run:
        await stage.until_written(run, 2)
        await until(stage, run, STEPS, lambda found: sum(row.state == "undone" for row in found) == 2)
        told = await until_seen(StepUndone, 2, run)
        status = await stage.database.run(lambda s: message_status(s, run.worker.declarations[0].handler, "1"))
    [letter] = await rows(stage, LETTERS)
    of_it = [one for one in provider.charges() if one.endswith("v1")]
    assert of_it == ["reserved-v1", "v1", "refunded-v1", "released-v1"]
    assert [(one.step, one.message_id, one.letter, one.called) for one in told] == [
        ("charge", "1", letter.id, True),
        ("reserve", "1", letter.id, True),
    ]
    # Each is undone with the key that it was called with, and what it was called with is forgotten.
    keys = [line.split()[1] for line in provider.path.read_text().splitlines() if line.split()[0] in of_it]
    assert keys[:2] == keys[3:1:-1]
    assert {(one.step, one.state, one.generation) for one in status.steps} == {
        ("charge", "undone", 1),
        ("reserve", "undone", 1),
    }
    assert not [row for row in await rows(stage) if row.state == "undone" and (row.given or row.result)]
    assert sorted(one for one in provider.charges() if not one.endswith("v1")) == [
        "reserved-v0", "reserved-v2", "v0", "v2",
    ]  # fmt: skip


async def test_an_undo_is_tried_again_by_its_own_policy(stage: MemoryStage, provider: Provider, kind: Kind) -> None:
    failed: list[str] = []

    def fails(name: str) -> None:
        if name == "refund" and len(failed) < 2:
            failed.append(name)
            raise ProviderDown("as asked")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, in_handle=rejects, undo_fails=fails)) as run:
        await until(stage, run, STEPS, states(2, "undone"))
        assert [(one.step, one.attempt, one.wait) for one in run.seen(StepUndoFailed)] == [
            ("charge", 1, 0.05),
            ("charge", 2, 0.05),
        ]
    assert provider.charges() == ["reserved-v0", "v0", "refunded-v0", "released-v0"]
    assert len(await rows(stage, LETTERS)) == 1


async def test_an_undo_that_raises_stop_iteration_has_failed(stage: MemoryStage, provider: Provider) -> None:
    """No future takes that error from a thread, so the undo would never end."""

    def fails(name: str) -> None:
        if name == "refund":
            next(iter(()))

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(PlainRefunding(provider, in_handle=rejects, undo_fails=fails)) as run:
        await until(stage, run, STEPS, states(2, "not undone", "undone"))
    assert provider.charges() == ["reserved-v0", "v0", "released-v0"]


async def test_a_plain_prepare_that_raises_stop_iteration_has_failed(stage: MemoryStage, provider: Provider) -> None:
    class Careless(PlainRefunding):
        def prepare(self, event: bytes, effects: PlainEffects) -> None:
            super().prepare(event, effects)
            next(iter(()))

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(Careless(provider)) as run:
        [letter] = await until(stage, run, LETTERS, lambda found: len(found) == 1)
        await until(stage, run, STEPS, states(2, "undone"))
    assert letter.error_type.endswith("RuntimeError")


@pytest.mark.parametrize("then", ["redriven", "resolved"])
async def test_an_undo_that_fails_for_good_is_a_dead_letter_of_its_own(
    stage: MemoryStage, provider: Provider, kind: Kind, then: str
) -> None:
    """What comes before it is undone all the same; a redrive of the message waits for what a person decides."""
    broken = [True]

    def fails(name: str) -> None:
        if name == "refund" and broken:
            raise ProviderDown("as asked")

    def handles(event: bytes) -> None:
        if broken:
            raise Reject("as asked")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, in_handle=handles, undo_fails=fails)) as run:
        first, letter = by_number(await until(stage, run, LETTERS, lambda found: len(found) == 2))
        assert (letter.reason, letter.attempts, letter.message_id) == ("undo_failed", 3, "0")
        assert letter.error_type.endswith("ProviderDown")
        assert (
            f"the undo of step 'charge' failed, and the step's effect stands (dead letter {first.id})" in letter.error
        )
        await until(stage, run, STEPS, states(2, "not undone", "undone"))
        died = await until_seen(MessageDeadLettered, 2, run)
        assert [one.reason.value for one in died] == ["rejected", "undo_failed"]
        broken.clear()
        await redrive(stage.url, Selection(ids=(first.id,)), by="ann")
        await until(stage, run, LETTERS, redriven_in_vain)
        again = by_number(await rows(stage, LETTERS))[0]
        assert f"decide on dead letter {letter.id} of its undo first" in again.error
        if then == "redriven":
            await redrive(stage.url, Selection(ids=(letter.id,)), by="ann")
        else:
            await resolve(stage.url, Selection(ids=(letter.id,)), by="ann", note="refunded by hand")
        await until(stage, run, STEPS, lambda found: all(row.state == "undone" for row in found))
        found = await until(stage, run, LETTERS, lambda found: by_number(found)[1].state == "resolved")
        assert by_number(found)[0].state == "dead"
        await redrive(stage.url, Selection(ids=(first.id,)), by="ann")
        await stage.until_written(run, 1)
    undone = ["refunded-v0"] if then == "redriven" else []
    assert provider.charges() == [
        "reserved-v0", "v0", "released-v0", "reserved-v0", "released-v0", *undone, "reserved-v0", "v0",
    ]  # fmt: skip


async def test_a_discarded_undo_stays_discarded_when_its_message_dies_again(
    stage: MemoryStage, provider: Provider, kind: Kind
) -> None:
    """The step was not called again, so the decision on its effect holds; what was called again is undone again."""
    asked: list[str] = []

    def fails(name: str) -> None:
        asked.append(name)
        if name == "refund":
            raise Reject("as asked")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, in_handle=rejects, undo_fails=fails)) as run:
        first, letter = by_number(await until(stage, run, LETTERS, lambda found: len(found) == 2))
        await until(stage, run, STEPS, states(2, "not undone", "undone"))
        await discard(stage.url, Selection(ids=(letter.id,)), by="ann", note="the customer keeps it")
        assert {row.step: (row.state, row.undo, row.given) for row in await rows(stage)} == {
            "charge": ("done", None, None),
            "reserve": ("undone", "done", None),
        }
        await redrive(stage.url, Selection(ids=(first.id,)), by="ann")
        await until(stage, run, LETTERS, redriven_in_vain)
        found = await until(stage, run, STEPS, states(2, "done", "undone"))
    assert {row.step: (row.state, row.generation) for row in found} == {"charge": ("done", 1), "reserve": ("undone", 2)}
    assert provider.charges() == ["reserved-v0", "v0", "released-v0", "reserved-v0", "released-v0"]
    assert asked == ["refund", "release", "release"]
    assert [row.state for row in by_number(await rows(stage, LETTERS))] == ["dead", "discarded"]


async def test_a_step_that_is_called_again_after_its_undo_was_discarded_has_its_own(
    stage: MemoryStage, provider: Provider
) -> None:
    """Its call was in doubt, and so was its undo: a redrive calls it, and that call is undone like any other."""
    broken = [True]

    class Breaking(Voiding):
        @step(deadline=2)
        async def charge(self, key: IdempotencyKey, value: bytes) -> str:
            done = self.provider.charge(key, value)
            if broken:
                raise ProviderDown("the connection broke after the charge")
            return done

        @charge.undo(in_doubt=True, retry=Retry(attempts=1))
        async def refund(self, key: IdempotencyKey, done: str | None, value: bytes) -> None:
            if broken:
                raise ProviderDown("as asked")
            self.provider.charge(key, b"refunded-" + value)

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(Breaking(provider, in_handle=rejects, retry=Retry(attempts=1))) as run:
        first, letter = by_number(await until(stage, run, LETTERS, lambda found: len(found) == 2))
        await until(stage, run, STEPS, states(2, "not undone", "undone"))
        await discard(stage.url, Selection(ids=(letter.id,)), by="ann", note="the customer keeps it")
        broken.clear()
        await redrive(stage.url, Selection(ids=(first.id,)), by="ann")
        await until(stage, run, LETTERS, redriven_in_vain)
        await until(stage, run, STEPS, states(2, "undone"))
    assert [one for one in provider.charges() if not one.startswith("re")] == ["v0", "v0"]
    assert provider.charges()[-2:] == ["refunded-v0", "released-v0"]


@pytest.mark.parametrize("decide", [resolve, discard])
async def test_undos_that_wait_go_on_when_a_person_decides_on_their_messages_letter(
    stage: MemoryStage, provider: Provider, kind: Kind, decide: Any
) -> None:
    may_undo: list[bool] = []

    def fails(name: str) -> None:
        if not may_undo:
            raise Defer(0.05, "not yet")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, in_handle=rejects, undo_fails=fails)) as run:
        await until(stage, run, LETTERS, lambda found: len(found) == 1)
        report = await decide(stage.url, Selection(), by="ann", note="as told")
        assert (report.done, report.undos) == (1, 2)
        may_undo.append(True)
        await until(stage, run, STEPS, states(2, "undone"))
    assert provider.charges() == ["reserved-v0", "v0", "refunded-v0", "released-v0"]
    [letter] = await rows(stage, LETTERS)
    assert letter.state == ("resolved" if decide is resolve else "discarded")


async def test_a_parked_message_that_is_erased_is_dead_and_its_steps_are_undone(
    stage: MemoryStage, provider: Provider, kind: Kind
) -> None:
    def fails(event: bytes) -> None:
        raise Defer(300, "not yet")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, in_handle=fails)) as run:
        await until(stage, run, LOT, lambda found: len(found) == 1)
        assert (await erase(stage.url, "k", by="ann"))[0].parked == 1
        found = await until(stage, run, STEPS, states(2, "undone"))
    assert not [row for row in found if row.given or row.result]
    assert provider.charges() == ["reserved-v0", "v0", "refunded-v0", "released-v0"]


async def test_a_redrive_waits_for_the_undo_and_calls_in_a_new_generation(
    stage: MemoryStage, provider: Provider, kind: Kind
) -> None:
    may_undo: list[bool] = []

    def fails(name: str) -> None:
        if not may_undo:
            raise Defer(0.05, "not yet")

    def handles(event: bytes) -> None:
        if not may_undo:
            raise Reject("as asked")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, in_handle=handles, undo_fails=fails)) as run:
        await until(stage, run, LETTERS, lambda found: len(found) == 1)
        await redrive(stage.url, Selection(), by="ann")
        await run.until(lambda: any(one.undoing for one in run.seen(StepAwaited)), "the redrive waits")
        assert provider.charges()[:2] == ["reserved-v0", "v0"]
        may_undo.append(True)
        await stage.until_written(run, 1)
    assert provider.charges() == ["reserved-v0", "v0", "refunded-v0", "released-v0", "reserved-v0", "v0"]
    lines = [line.split() for line in provider.path.read_text().splitlines()]
    keys = [key for value, key in lines if value == "v0"]
    assert len(set(keys)) == 2
    assert {(row.state, row.generation, row.calls) for row in await rows(stage)} == {("done", 2, 1)}
    assert await rows(stage, LEDGER)


async def test_two_workers_undo_each_step_once(stage: MemoryStage, provider: Provider, kind: Kind) -> None:
    """The undos are any worker's to do, and these two look for them at once."""
    for number in range(20):
        stage.append(number, key=b"%d" % number, value=b"v%d" % number)
    handlers = [kind(provider, in_handle=rejects) for _ in range(2)]
    async with stage.run(handlers[0]) as one, stage.run(handlers[1]) as other:
        await until(stage, one, STEPS, states(40, "undone"))
        told = await until_seen(StepUndone, 40, one, other)
    assert len(told) == 40
    assert {one.called for one in told} == {True}
    found = sorted(provider.charges())
    assert found == sorted(
        f"{what}v{number}" for number in range(20) for what in ("", "reserved-", "refunded-", "released-")
    )


async def test_undos_that_wait_are_measured(stage: MemoryStage, provider: Provider, kind: Kind) -> None:
    def fails(name: str) -> None:
        raise Defer(300, "not yet")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, in_handle=rejects, undo_fails=fails)) as run:
        await run.until(lambda: bool(run.seen(StepUndoFailed)), "the undo waits")
    [waits] = (await stage.database.run(lambda session: measure(session, DEFAULT_TABLES, ["charge"]))).handlers
    assert (waits.undos, waits.undos_due, waits.work_left) == (2, 0, 0)
    past = dialect_for(stage.url.split(":")[0].split("+")[0], DEFAULT_TABLES).in_seconds(-60.0)
    await stage.database.run(lambda session: session.execute(update(STEPS).values(undo_at=past)))
    [due] = (await stage.database.run(lambda session: measure(session, DEFAULT_TABLES, ["charge"]))).handlers
    assert (due.undos, due.undos_due, due.work_left) == (2, 2, 2)
    assert due.work_left_oldest_seconds == due.undos_due_oldest_seconds >= 60


async def test_what_a_step_was_called_with_is_sealed_until_it_is_undone(
    stage: MemoryStage, provider: Provider, kind: Kind
) -> None:
    tables = Tables(sealer=Mirror())
    may_undo: list[bool] = []

    def fails(name: str) -> None:
        if not may_undo:
            raise Defer(0.05, "not yet")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, in_handle=rejects, undo_fails=fails), tables=tables) as run:
        found = await until(stage, run, STEPS, states(2, "undoing"))
        assert [row.sealed for row in found] == [True, True]
        assert not [row for row in found if b"v0" in bytes(row.given)]
        may_undo.append(True)
        await until(stage, run, STEPS, states(2, "undone"))
    assert provider.charges() == ["reserved-v0", "v0", "refunded-v0", "released-v0"]


async def test_what_waits_to_be_undone_outlasts_the_erasure_of_its_message(
    stage: MemoryStage, provider: Provider, kind: Kind
) -> None:
    """The step's own arguments are enough, and go with the undo."""
    may_undo: list[bool] = []

    def fails(name: str) -> None:
        if not may_undo:
            raise Defer(0.05, "not yet")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, in_handle=rejects, undo_fails=fails)) as run:
        await until(stage, run, LETTERS, lambda found: len(found) == 1)
        assert (await erase(stage.url, "k", by="ann"))[0].dead_letters == 1
        may_undo.append(True)
        found = await until(stage, run, STEPS, states(2, "undone"))
    assert not [row for row in found if row.given or row.result]
    assert provider.charges() == ["reserved-v0", "v0", "refunded-v0", "released-v0"]


async def test_what_was_given_up_undoing_goes_with_the_erasure(
    stage: MemoryStage, provider: Provider, kind: Kind
) -> None:
    """Its dead letter is discarded, so that it is not undone any more."""

    def fails(name: str) -> None:
        raise ProviderDown("as asked")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, in_handle=rejects, undo_fails=fails)) as run:
        await until(stage, run, STEPS, states(2, "not undone"))
        assert (await erase(stage.url, "k", by="ann"))[0].dead_letters == 3
    assert {row.state for row in await rows(stage, LETTERS)} == {"discarded"}
    assert not [row for row in await rows(stage) if row.given or row.result]


async def test_a_call_that_raised_may_have_happened(stage: MemoryStage, provider: Provider, kind: Kind) -> None:
    """Its result is unknown, so its undo is not called, and the dead letter has the key."""

    def breaks(value: str) -> None:
        if value == "v0":
            raise ProviderDown("the connection broke after the charge")

    provider.after = breaks
    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, retry=Retry(attempts=1))) as run:
        [letter] = await until(stage, run, LETTERS, lambda found: len(found) == 1)
        await until(stage, run, STEPS, lambda found: any(row.state == "undone" for row in found))
    assert provider.charges() == ["reserved-v0", "v0", "released-v0"]
    [key] = {line.split()[1] for line in provider.path.read_text().splitlines() if line.startswith("v0")}
    assert f"step 'charge' may have happened: look for the key {key} on the other side" in letter.error
    assert letter.error.startswith("the connection broke after the charge")


async def test_arguments_by_name_reach_the_undo_by_name(stage: MemoryStage, provider: Provider) -> None:
    class Named(Refunding):
        @step
        async def charge(self, key: IdempotencyKey, value: bytes, *, currency: str = "EUR") -> str:
            return self.provider.charge(key, value)

        @charge.undo  # type: ignore[arg-type]
        async def refund(self, key: IdempotencyKey, done: str, value: bytes, *, currency: str) -> None:
            self.provider.charge(key, b"refunded-" + currency.encode() + b"-" + value)

        async def prepare(self, event: bytes, effects: Effects) -> None:
            await effects.run(self.charge, value=event, currency="CHF")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(Named(provider, in_handle=rejects)) as run:
        await until(stage, run, STEPS, states(1, "undone"))
    assert provider.charges() == ["v0", "refunded-CHF-v0"]


async def test_a_step_that_gather_leaves_behind_is_undone(stage: MemoryStage, provider: Provider) -> None:
    """Of two steps at once one rejects the message while the other still runs."""

    class Together(Refunding):
        @step
        async def reserve(self, key: IdempotencyKey, value: bytes) -> str:
            raise Reject("sold out")

        @step
        async def charge(self, key: IdempotencyKey, value: bytes) -> str:
            await asyncio.sleep(0.5)
            return self.provider.charge(key, value)

        @charge.undo
        async def refund(self, key: IdempotencyKey, done: str, value: bytes) -> None:
            self.provider.charge(key, b"refunded-" + value)

        async def prepare(self, event: bytes, effects: Effects) -> None:
            await asyncio.gather(effects.run(self.reserve, event), effects.run(self.charge, event))

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(Together(provider)) as run:
        await until(stage, run, STEPS, states(2, "failed", "undone"))
    assert provider.charges() == ["v0", "refunded-v0"]
    [letter] = await rows(stage, LETTERS)
    assert "may have happened" not in letter.error
