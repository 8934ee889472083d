"""Steps: effects outside the database are done once, whatever happens to the transaction."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from consumerkit import (
    AlreadyDone,
    ConfigurationError,
    Context,
    Defer,
    Effects,
    IdempotencyKey,
    PlainEffects,
    Retry,
    fixed,
    message_status,
    step,
)
from consumerkit.errors import SessionOver
from consumerkit.events import AttemptFailed, GroupCommitted, StepAwaited, StepDoubted, StepsRun, Trouble
from consumerkit.redrive import Selection, redrive
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.maintenance.pruning import PruneStatements
from consumerkit.storage.steps import StepRows
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.memory_stage import MemoryStage, line
from tests.integration.stage import until_seen
from tests.integration.step_stage import (
    KINDS,
    LEDGER,
    LETTERS,
    LOT,
    PROGRESS,
    STEPS,
    Asking,
    Charging,
    PlainCharging,
    Provider,
    ProviderDown,
    Refusing,
    begun_elsewhere,
    provider,
    rows,
    stage,
    until,
    until_done,
)

__all__ = ["provider", "stage"]

Kind = type[Charging] | type[PlainCharging]


@pytest.fixture
def kind(stage: MemoryStage) -> Kind:
    """A coroutine on PostgreSQL, a plain function on SQLite: each database and each way has its turn."""
    return PlainCharging if stage.url.startswith("sqlite") else Charging


def send(stage: MemoryStage, count: int, key: bytes | None = None) -> list[str]:
    """Send messages; return what is to be charged for them."""
    values = [f"v{number}" for number in range(count)]
    for number, value in enumerate(values):
        stage.append(number, key=key, value=value.encode(), partition=0)
    return values


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rollback_does_not_call_again(stage: MemoryStage, provider: Provider, kind: Kind) -> None:
    values = send(stage, 20)
    failed: list[bytes] = []

    def fails(event: bytes) -> None:
        if event in (b"v3", b"v11") and failed.count(event) < 2:
            failed.append(event)
            raise RuntimeError("as asked")

    async with stage.run(kind(provider, in_handle=fails)) as run:
        lines = await until_done(stage, run, 20)
    assert sorted(one.message_id for one in lines) == sorted(f"charge of {value}" for value in values)
    assert len(failed) > 2
    assert sorted(provider.charges()) == sorted(values)
    assert len(set(provider.keys)) == 20
    assert {(row.state, row.calls) for row in await rows(stage)} == {("done", 1)}


async def test_another_worker_does_not_call_again(stage: MemoryStage, provider: Provider, kind: Kind) -> None:
    values = send(stage, 5)

    def defers(_event: bytes) -> None:
        raise Defer(0.01, "not yet")

    async with stage.run(kind(provider, in_handle=defers)) as run:
        await until(stage, run, LOT, lambda found: len(found) == 5)
    async with stage.run(kind(provider)) as run:
        await until_done(stage, run, 5)
        assert sum(one.reused for one in run.seen(StepsRun)) >= 5
        # A copy of what is processed is not prepared at all.
        stage.append(0, value=b"v0", partition=0, key=None)
        await run.until(lambda: sum(one.duplicates for one in run.seen(GroupCommitted)) >= 1, "the copy is skipped")
    assert sorted(provider.charges()) == sorted(values)
    assert run.worker.declarations[0].handler.prepared.count(b"v0") == 1  # type: ignore[union-attr]


async def test_a_step_begun_elsewhere_is_waited_for(stage: MemoryStage, provider: Provider, kind: Kind) -> None:
    key = await begun_elsewhere(stage, kind(provider), 1, b"v1", seconds=3600)
    send(stage, 3)
    async with stage.run(kind(provider)) as run:
        await stage.until_written(run, 2)
        [parked] = await until(stage, run, LOT, lambda found: len(found) == 1)
        assert (parked.attempts, parked.error_type) == (0, "consumerkit.errors.StepUnderWay")
        assert "step 'charge' has begun" in parked.error
        assert "v1" not in provider.charges()
        [told, *_] = run.seen(StepAwaited)
        assert (told.step, told.message_id, told.offset) == ("charge", "1", 1)
        assert 3000 < told.wait <= 3600
        assert not run.seen(AttemptFailed)
        await stage.database.run(lambda s: s.execute(update(STEPS).values(deadline_at=STEPS.c.started_at)))
        await stage.database.run(lambda s: s.execute(update(LOT).values(due_at=LOT.c.parked_at)))
        await stage.until_written(run, 3)
        assert [one.then for one in run.seen(StepDoubted)] == ["called again"]
    assert provider.count("v1") == 1
    assert provider.keys[-1] == key
    [row] = [one for one in await rows(stage) if one.calls == 2]
    assert row.state == "done"


@pytest.mark.parametrize(
    "kind, charged, calls, asked, state",
    [
        (Charging, False, 1, 0, "done"),
        (PlainCharging, False, 1, 0, "done"),
        (Asking, True, 0, 1, "done"),
        (Asking, False, 1, 1, "done"),
        (Refusing, False, 0, 0, "started"),
    ],
)
async def test_a_step_in_doubt(
    stage: MemoryStage, provider: Provider, kind: type[Charging], charged: bool, calls: int, asked: int, state: str
) -> None:
    key = await begun_elsewhere(stage, kind(provider), 0, b"v0", seconds=-1)
    if charged:
        provider.charge(key, b"v0")
        provider.keys.clear()
    send(stage, 1)
    async with stage.run(kind(provider)) as run:
        if kind is Refusing:
            [letter] = await until(stage, run, LETTERS, lambda found: len(found) == 1)
            assert (letter.reason, letter.error_type) == ("rejected", "consumerkit.errors.StepInDoubt")
            assert "step 'charge' may have happened" in letter.error
            assert key in letter.error
        else:
            await until_done(stage, run, 1)
        assert not run.seen(AttemptFailed) or kind is Refusing
        [told] = run.seen(StepDoubted)
        assert told.then == {Refusing: "dead-lettered", Asking: "asked"}.get(kind, "called again")
    assert (provider.keys, provider.asked) == ([key] * calls, [key] * asked)
    [row] = await rows(stage)
    assert row.state == state
    if kind is Asking and charged:
        assert row.result == '"found"'


async def test_a_redrive_calls_a_step_in_doubt(stage: MemoryStage, provider: Provider) -> None:
    key = await begun_elsewhere(stage, Refusing(provider), 0, b"v0", seconds=-1)
    send(stage, 1)
    async with stage.run(Refusing(provider)) as run:
        await until(stage, run, LETTERS, lambda found: len(found) == 1)
        await redrive(stage.url, Selection(), by="ann")
        await until_done(stage, run, 1)
    assert provider.keys == [key]


@pytest.mark.parametrize("failures", [1, 3])
async def test_errors_of_a_step_meet_retry(stage: MemoryStage, provider: Provider, kind: Kind, failures: int) -> None:
    """Each call is one attempt, although the first one is made for the whole batch at once."""
    values = send(stage, 10)
    failed: list[str] = []

    def fails(value: str) -> None:
        if value in ("v2", "v7") and failed.count(value) < failures:
            failed.append(value)
            raise ProviderDown("as asked")

    provider.before = fails
    async with stage.run(kind(provider)) as run:
        if failures == 3:
            letters = await until(stage, run, LETTERS, lambda found: len(found) == 2)
            assert {(one.reason, one.attempts) for one in letters} == {("exhausted", 3)}
        lines = await until_done(stage, run, 8 if failures == 3 else 10)
        failed_attempts = await until_seen(AttemptFailed, 2 * failures, run)
        attempts = sorted((one.message_id, one.attempt) for one in failed_attempts)
    assert attempts == [(number, attempt) for number in "27" for attempt in range(1, failures + 1)]
    assert sorted(failed) == ["v2"] * failures + ["v7"] * failures
    assert len(lines) == (8 if failures == 3 else 10)
    assert sorted(provider.charges()) == sorted(value for value in values if failures < 3 or value not in failed)
    assert len(set(provider.keys)) == 10


async def test_what_the_other_side_has_done_before(stage: MemoryStage, provider: Provider, kind: Kind) -> None:
    def repeated(_value: str) -> None:
        raise AlreadyDone("the first charge")

    provider.before = repeated
    send(stage, 1)
    async with stage.run(kind(provider)) as run:
        [line] = await until_done(stage, run, 1)
    assert line.message_id == "the first charge"


@pytest.mark.parametrize("where", ["start", "end"])
async def test_trouble_of_our_database_is_no_attempt(
    stage: MemoryStage, provider: Provider, kind: Kind, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(StepRows, where)
    raised: list[bool] = []

    def troubled(self: StepRows, *args: Any) -> Any:
        if len(raised) < 2:
            raised.append(True)
            raise OperationalError("writing", {}, OSError("gone"))
        return real(self, *args)

    monkeypatch.setattr(StepRows, where, troubled)
    values = send(stage, 4)
    async with stage.run(kind(provider)) as run:
        await until_done(stage, run, 4)
        assert run.seen(Trouble)
        assert not run.seen(AttemptFailed)
    assert len(raised) == 2
    assert sorted(provider.charges()) == values


async def test_an_old_result_is_not_written_over_a_newer_one(
    stage: MemoryStage, provider: Provider, kind: Kind
) -> None:
    """While it is called, somebody else takes the step over, as after its deadline, and is through first."""
    newer = {"owner": b"n" * 16, "state": "done", "result": '"the newer one"'}

    def overtaken(_value: str) -> None:
        engine = create_engine(stage.url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            assert connection.execute(update(STEPS).values(**newer)).rowcount == 1
        engine.dispose()

    provider.after = overtaken
    send(stage, 1)
    async with stage.run(kind(provider)) as run:
        [line] = await until_done(stage, run, 1)
        assert not run.seen(AttemptFailed)
    assert line.message_id == "the newer one"
    assert provider.count("v0") == 1


@pytest.mark.parametrize("when", ["before the start", "before the result"])
async def test_a_fenced_worker_writes_nothing(stage: MemoryStage, provider: Provider, when: str) -> None:
    refused: list[str] = []
    taken: list[str] = []

    class Late(Charging):
        async def prepare(self, event: bytes, effects: Effects) -> None:
            if not taken and when == "before the start":
                taken.append(when)
                await stage.database.run(lambda s: s.execute(update(PROGRESS).values(owner=b"x" * 16)))
            try:
                await effects.run(self.charge, event)
            except Exception as error:
                refused.append(type(error).__name__)
                [*found] = await rows(stage)
                refused.append(",".join(row.state for row in found))
                raise

        @step
        async def charge(self, key: IdempotencyKey, value: bytes) -> str:
            result = self.provider.charge(key, value)
            if not taken and when == "before the result":
                taken.append(when)
                await stage.database.run(lambda s: s.execute(update(PROGRESS).values(owner=b"x" * 16)))
            return result

    send(stage, 1)
    async with stage.run(Late(provider)) as run:
        await until_done(stage, run, 1)
        assert not run.seen(AttemptFailed)
    assert refused == ["Fenced", "" if when == "before the start" else "started"]
    # The partition came back to the worker that knows the result, and no other one had begun the step.
    assert provider.count("v0") == 1
    assert len(set(provider.keys)) == 1


async def test_other_arguments_under_the_same_step_are_told(stage: MemoryStage, provider: Provider, kind: Kind) -> None:
    await begun_elsewhere(stage, kind(provider), 0, b"another value", seconds=-1)
    send(stage, 1)
    async with stage.run(kind(provider)) as run:
        [letter] = await until(stage, run, LETTERS, lambda found: len(found) == 1)
    assert letter.error_type == "consumerkit.errors.StepChanged"
    assert "step 'charge' ran for this message before, with other arguments" in letter.error
    assert provider.charges() == []


async def test_the_starts_of_a_batch_are_one_transaction(
    stage: MemoryStage, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    real = StepRows.start

    def start(self: StepRows, connection: Any, starts: list[Any], owner: bytes) -> Any:
        begun.append(len(starts))
        return real(self, connection, starts, owner)

    monkeypatch.setattr(StepRows, "start", start)
    send(stage, 30)
    under_way: list[int] = []

    class Counting(Charging):
        calls = 0

        @step
        async def charge(self, key: IdempotencyKey, value: bytes) -> str:
            self.calls += 1
            under_way.append(self.calls)
            await asyncio.sleep(0.01)
            self.calls -= 1
            return "charged"

    async with stage.run(Counting(provider, concurrency=1)) as run:
        await until_done(stage, run, 30)
        first, begun[:], under_way[:] = max(begun), [], []
    assert first == 30
    for number in range(30, 60):
        stage.append(number, key=None, partition=0)
    async with stage.run(Counting(provider, concurrency=1, step_concurrency=4)) as run:
        await until_done(stage, run, 60)
    assert max(under_way) == 4


async def test_steps_of_one_key_follow_one_another(stage: MemoryStage, provider: Provider, kind: Kind) -> None:
    """Where one fails, those of the later messages of its key are not called before it has an end."""
    send(stage, 6, key=b"k")

    def fails(value: str) -> None:
        if value == "v2" and len(provider.keys) < 6:
            raise ProviderDown("as asked")

    provider.before = fails
    async with stage.run(kind(provider, retry=Retry(attempts=9, wait=fixed(0.01)))) as run:
        await until_done(stage, run, 6)
    assert provider.charges() == ["v0", "v1", "v2", "v3", "v4", "v5"]


async def test_a_step_within_handle(stage: MemoryStage, provider: Provider) -> None:
    """On PostgreSQL its result outlives the transaction; on SQLite, which has one writer, it is refused."""
    handled: list[bytes] = []

    class Inside(Charging):
        prepare = None  # type: ignore[assignment]

        async def handle(self, event: bytes, context: Context) -> None:
            made = line(context)
            made.message_id = await context.run(self.charge, event)
            assert context.done(self.charge) == made.message_id
            context.session.add(made)
            handled.append(event)
            if event == b"v1" and handled.count(event) < 3:
                raise RuntimeError("as asked")

    class Hidden(Charging):
        async def prepare(self, event: bytes, effects: Effects) -> None: ...

        async def handle(self, event: bytes, context: Context) -> None:
            await self.other(context, event)

        async def other(self, context: Context, event: bytes) -> None:
            await context.run(self.charge, event)

    values = send(stage, 3)
    if stage.url.startswith("sqlite"):
        with pytest.raises(ConfigurationError, match=r"calls context\.run in handle, and on SQLite"):
            stage.make(Inside(provider))
        async with stage.run(Hidden(provider)) as run:
            await run.until(lambda: bool(run.seen(AttemptFailed)), "it is refused when it is called")
            assert "SQLite has one writer; run it in prepare" in run.seen(AttemptFailed)[0].error
        assert provider.charges() == []
        return
    async with stage.run(Inside(provider)) as run:
        await until_done(stage, run, 3)
    assert sorted(provider.charges()) == values
    assert handled.count(b"v1") == 3


async def test_a_refusal_of_ours_cannot_be_passed_over(stage: MemoryStage, provider: Provider) -> None:
    class Careless(Charging):
        async def prepare(self, event: bytes, effects: Effects) -> None:
            with suppress(Exception):
                await effects.run(self.charge, event)

    await begun_elsewhere(stage, Careless(provider), 0, b"v0", seconds=3600)
    send(stage, 1)
    async with stage.run(Careless(provider)) as run:
        [parked] = await until(stage, run, LOT, lambda found: len(found) == 1)
    assert parked.error_type == "consumerkit.errors.StepUnderWay"
    assert not await stage.lines()


async def test_a_call_is_cut_off_at_its_deadline_and_is_in_doubt(stage: MemoryStage, provider: Provider) -> None:
    class Slow(Charging):
        @step(deadline=0.05)
        async def charge(self, key: IdempotencyKey, value: bytes) -> str:
            charged = self.provider.charge(key, value)
            if len(self.provider.keys) == 1:
                await asyncio.Event().wait()
            return charged  # without a wait, it cannot be cut off

    send(stage, 1)
    async with stage.run(Slow(provider)) as run:
        await stage.until_written(run, 1)
        [failed] = run.seen(AttemptFailed)
        assert "TimeoutError" in failed.error
        assert [one.then for one in run.seen(StepDoubted)] == ["called again"]
    assert len(provider.keys) == 2
    assert len(set(provider.keys)) == 1
    assert [(row.state, row.calls) for row in await rows(stage)] == [("done", 2)]


class Alive(Charging):
    """Says that it is alive, after `passes` was called."""

    passes: Callable[[], None]

    @step(deadline=30)
    async def charge(self, key: IdempotencyKey, value: bytes, effects: Effects) -> str:  # type: ignore[override]
        await asyncio.to_thread(self.passes)
        calls: Any = effects._calls
        limit = calls._running["charge"][1]
        before = limit.when()
        await effects.alive()
        assert limit.when() > before
        return self.provider.charge(key, value)

    async def prepare(self, event: bytes, effects: Effects) -> None:
        await effects.run(self.charge, event, effects)


class PlainAlive(PlainCharging):
    """The same in threads."""

    passes: Callable[[], None]

    @step(deadline=30)
    def charge(self, key: IdempotencyKey, value: bytes, effects: PlainEffects) -> str:  # type: ignore[override]
        self.passes()
        effects.alive()
        return self.provider.charge(key, value)

    def prepare(self, event: bytes, effects: PlainEffects) -> None:
        effects.run(self.charge, event, effects)


@pytest.mark.parametrize("taken_over", [False, True], ids=["ours", "taken over"])
@pytest.mark.parametrize("kind", [Alive, PlainAlive])
async def test_the_deadline_of_a_step_that_is_alive_counts_from_then(
    stage: MemoryStage, provider: Provider, kind: type[Alive] | type[PlainAlive], taken_over: bool
) -> None:
    passed: list[bool] = []
    late: list[float] = []

    def ask(work: Callable[[Session], Any]) -> None:
        engine = create_engine(stage.url.replace("postgresql://", "postgresql+psycopg://"))
        with Session(engine) as session, session.begin():
            work(session)
        engine.dispose()

    def passes() -> None:
        """Have its deadline be over, and, where that is asked for, another worker begin it again."""
        over: dict[str, Any] = {"deadline_at": datetime(2020, 1, 1, tzinfo=UTC)}
        if taken_over and not passed:
            over["owner"] = b"n" * 16
        passed.append(True)
        ask(lambda session: session.execute(update(STEPS).values(**over)))

    def look(session: Session) -> None:
        dialect = dialect_for(session.connection().dialect.name, DEFAULT_TABLES)
        late.extend(float(one) for one in session.scalars(select(dialect.seconds_since(STEPS.c.deadline_at))))

    provider.after = lambda _: ask(look)
    send(stage, 1)
    async with stage.run(kind(provider, passes=passes)) as run:
        if taken_over:
            [parked] = await until(stage, run, LOT, lambda found: len(found) == 1)
            assert (parked.attempts, parked.error_type) == (0, "consumerkit.errors.StepUnderWay")
            assert "step 'charge' took too long, and another worker has begun it since" in parked.error
        await stage.until_written(run, 1)
        assert not run.seen(AttemptFailed)
    assert provider.count("v0") == 1
    assert len(passed) == (2 if taken_over else 1)
    assert all(one < 0 for one in late)
    assert len(late) == 1


async def test_status_lists_steps_and_retention_forgets_them(stage: MemoryStage, provider: Provider) -> None:
    await begun_elsewhere(stage, Charging(provider), 7, b"v7", seconds=-1)  # of a message that never comes
    send(stage, 1)
    async with stage.run(Charging(provider)) as run:
        await until_done(stage, run, 1)
        status = await stage.database.run(lambda s: message_status(s, run.worker.declarations[0].handler, "0"))
    assert [(one.step, one.state, one.calls) for one in status.steps] == [("charge", "done", 1)]
    assert status.steps[0].ended_at is not None

    def old(session: Session) -> None:
        session.execute(update(STEPS).values(started_at=datetime(2020, 1, 1, tzinfo=UTC)))
        session.execute(update(LEDGER).values(processed_at=datetime(2020, 1, 1, tzinfo=UTC)))
        session.execute(update(PROGRESS).values(settled_at=datetime(2021, 1, 1, tzinfo=UTC)))

    await stage.database.run(old)
    pruning = PruneStatements(DEFAULT_TABLES, dialect_for(stage.database.dialect_name, DEFAULT_TABLES))
    [plan] = await stage.database.run(lambda s: pruning.plans(s, 60.0))
    assert await stage.database.run(lambda s: pruning.any(s, plan))
    assert await stage.database.run(lambda s: pruning.promise(s, plan))
    await stage.database.run(lambda s: pruning.forget(s, plan, None))
    assert await rows(stage) == []


async def test_a_result_that_cannot_be_kept_is_in_doubt_after_one_call(
    stage: MemoryStage, provider: Provider, kind: Kind
) -> None:
    """The call was made: another attempt would only make it again."""

    class Wrong(Charging):
        @step
        async def charge(self, key: IdempotencyKey, value: bytes) -> str:
            self.provider.charge(key, value)
            return object()  # type: ignore[return-value]

    class PlainWrong(PlainCharging):
        @step
        def charge(self, key: IdempotencyKey, value: bytes) -> str:
            self.provider.charge(key, value)
            return object()  # type: ignore[return-value]

    send(stage, 1)
    handler: Any = (Wrong if kind is Charging else PlainWrong)(provider)
    async with stage.run(handler) as run:
        [letter] = await until(stage, run, LETTERS, lambda found: len(found) == 1)
    assert provider.count("v0") == 1
    assert (letter.reason, letter.error_type) == ("rejected", "consumerkit.errors.StepInDoubt")
    assert "step 'charge' was called and returned object, which cannot be kept as its annotated type" in letter.error
    assert f"step 'charge' may have happened: look for the key {provider.keys[0]} on the other side" in letter.error
    assert [row.state for row in await rows(stage)] == ["started"]


@pytest.mark.timeout(60)
async def test_effects_of_prepare_are_refused_after_it(stage: MemoryStage, provider: Provider, kind: Kind) -> None:
    """On SQLite the step would wait for the transaction that waits for it."""
    seen: list[str] = []

    class Late(Charging):
        async def prepare(self, event: bytes, effects: Effects) -> None:
            await effects.run(self.charge, event)
            self.kept = effects

        async def handle(self, event: bytes, context: Context) -> None:
            try:
                await self.kept.run(self.charge, event)
            except SessionOver as error:
                seen.append(str(error))
            context.session.add(line(context))

    class PlainLate(PlainCharging):
        def prepare(self, event: bytes, effects: PlainEffects) -> None:
            effects.run(self.charge, event)
            self.kept = effects

        def handle(self, event: bytes, context: Context[Session]) -> None:
            try:
                self.kept.run(self.charge, event)
            except SessionOver as error:
                seen.append(str(error))
            context.session.add(line(context))

    send(stage, 1)
    handler: Any = (Late if kind is Charging else PlainLate)(provider)
    async with stage.run(handler) as run:
        await until_done(stage, run, 1)
    assert len(seen) == 1
    assert "charge> was run by effects.run after prepare had returned; await in prepare what it starts" in seen[0]


async def test_confirm_gets_the_arguments_however_they_were_given(stage: MemoryStage, provider: Provider) -> None:
    """It need not have the step's names, except for those that the step takes by name only."""

    class Named(Asking):
        @step
        async def charge(self, key: IdempotencyKey, value: bytes, *, currency: str = "EUR") -> str:
            return self.provider.charge(key, value)

        @charge.confirm  # type: ignore[arg-type]
        async def find(self, key: IdempotencyKey, what: bytes, *, currency: str) -> AlreadyDone | None:
            self.provider.asked.append(f"{what.decode()} {currency}")
            return AlreadyDone("found")

        async def prepare(self, event: bytes, effects: Effects) -> None:
            await effects.run(self.charge, value=event)

    handler = Named(provider)
    send(stage, 1)
    async with stage.run(handler) as run:
        await until_done(stage, run, 1)
        await stage.database.run(
            lambda s: s.execute(update(STEPS).values(state="started", owner=b"o" * 16, deadline_at=STEPS.c.started_at))
        )
        await stage.database.run(lambda s: s.execute(delete(LEDGER)))
        stage.append(0, key=None, value=b"v0", partition=1)
        await stage.until_written(run, 2)
    assert provider.asked == ["v0 EUR"]
    assert provider.count("v0") == 1


@pytest.mark.parametrize("where", ["prepare", "handle"])
async def test_a_step_that_gather_leaves_behind_is_called_once(
    stage: MemoryStage, provider: Provider, where: str
) -> None:
    """Of two steps at once the first fails. The next attempt must not find the other one under way."""
    with ThreadPoolExecutor() as pool:
        handler: Any = Together(provider) if where == "prepare" else TogetherInHandle(provider)
        if stage.url.startswith("sqlite"):
            handler = PlainTogether(provider, pool=pool)  # `handle` has no steps on SQLite
        send(stage, 1)
        async with stage.run(handler) as run:
            await until_done(stage, run, 1)
        assert not run.seen(StepDoubted)
    assert provider.charges() == ["v0"]


class Together(Charging):
    """Runs a step that fails at first beside one that takes longer."""

    @step
    async def reserve(self, key: IdempotencyKey, value: bytes) -> str:
        return fail_at_first(self.provider, key)

    @step
    async def charge(self, key: IdempotencyKey, value: bytes) -> str:
        await asyncio.sleep(0.5)
        return self.provider.charge(key, value)

    async def prepare(self, event: bytes, effects: Effects) -> None:
        await asyncio.gather(effects.run(self.reserve, event), effects.run(self.charge, event))


class TogetherInHandle(Together):
    """The same within `handle`."""

    prepare = None  # type: ignore[assignment]

    async def handle(self, event: bytes, context: Context) -> None:
        await asyncio.gather(context.run(self.reserve, event), context.run(self.charge, event))
        context.session.add(line(context))


class PlainTogether(PlainCharging):
    """The same in threads."""

    pool: ThreadPoolExecutor

    @step
    def reserve(self, key: IdempotencyKey, value: bytes) -> str:
        return fail_at_first(self.provider, key)

    @step
    def charge(self, key: IdempotencyKey, value: bytes) -> str:
        time.sleep(0.5)
        return self.provider.charge(key, value)

    def prepare(self, event: bytes, effects: PlainEffects) -> None:
        running = [self.pool.submit(effects.run, one, event) for one in (self.reserve, self.charge)]
        for each in running:
            each.result()


def fail_at_first(provider: Provider, key: str) -> str:
    provider.asked.append(key)
    if len(provider.asked) == 1:
        raise ProviderDown("as asked")
    return "reserved"


async def test_a_step_that_is_cancelled_while_it_waits_for_its_turn_holds_up_nothing(
    stage: MemoryStage, provider: Provider
) -> None:
    class Impatient(Charging):
        step_concurrency = 1

        @step
        async def other(self, key: IdempotencyKey, value: bytes) -> str:
            return self.provider.charge(key, b"other")

        @step
        async def charge(self, key: IdempotencyKey, value: bytes) -> str:
            await asyncio.sleep(0.2)
            return self.provider.charge(key, value)

        async def prepare(self, event: bytes, effects: Effects) -> None:
            charging = asyncio.create_task(effects.run(self.charge, event))
            await asyncio.sleep(0)
            with suppress(TimeoutError):
                await asyncio.wait_for(effects.run(self.other, event), 0.05)
            await charging

    send(stage, 1)
    async with stage.run(Impatient(provider)) as run:
        await until_done(stage, run, 1)
    assert provider.charges() == ["v0"]
