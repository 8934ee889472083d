"""`on_dead_letter` is called once for each dead letter, and its errors never change the letter."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from consumerkit import (
    Context,
    DeadLetterContext,
    DeadLetteredMessage,
    Handler,
    Reject,
    Retry,
    fixed,
    header,
)
from consumerkit.engine import dead_letter_hook
from consumerkit.events import DeadLetterHookFailed, MessageDeadLettered, PartitionsAssigned
from consumerkit.handlers.handler import AnyHandler
from consumerkit.redrive import Selection, redrive
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.left_behind import OVERDUE
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.memory_stage import TOPIC, Line, MemoryStage
from tests.integration.stage import Run, until_seen
from tests.integration.step_stage import LETTERS, Provider, ProviderDown, Refunding, rows, until
from tests.services import PostgresServer

Hook = Callable[[DeadLetteredMessage, Any], object]


def told(letter: DeadLetteredMessage) -> Line:
    message = letter.message
    text_ = f"{letter.message_id or '(none)'} {letter.reason} {letter.redrives}"
    return Line(message_id=text_, key=message.value, partition=message.partition, offset=message.offset)


class _Told:
    name = "told"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=2, wait=fixed(0.01))

    def __init__(self, in_hook: Hook = lambda letter, context: None, **declared: Any) -> None:
        self.in_hook = in_hook
        self.calls: list[DeadLetteredMessage] = []
        self.healed = False
        vars(self).update(declared)


class Told(_Told, Handler[bytes]):
    async def handle(self, event: bytes, context: Context) -> None:
        if event == b"bad" and not self.healed:
            raise Reject("as asked")
        if event == b"down" and not self.healed:
            raise ProviderDown("as asked")

    async def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext) -> None:
        self.calls.append(letter)
        context.session.add(told(letter))
        context.publish("told", key=letter.message_id, value={"letter": letter.id})
        found = self.in_hook(letter, context)
        if asyncio.iscoroutine(found):
            await found


class PlainTold(_Told, Handler[bytes]):
    def handle(self, event: bytes, context: Context[Session]) -> None:
        if event == b"bad" and not self.healed:
            raise Reject("as asked")
        if event == b"down" and not self.healed:
            raise ProviderDown("as asked")

    def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext[Session]) -> None:
        self.calls.append(letter)
        context.session.add(told(letter))
        context.publish("told", key=letter.message_id, value={"letter": letter.id})
        self.in_hook(letter, context)


class Silent(Handler[bytes]):
    name, topic, message_id = "told", TOPIC, header("id")

    async def handle(self, event: bytes, context: Context) -> None: ...


@pytest.fixture(params=["postgresql", "sqlite"])
async def stage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MemoryStage]:
    monkeypatch.setattr(dead_letter_hook, "_LOOK", 0.05)
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'letters.db'}"
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        url = postgres.url(request.getfixturevalue("database"))
    made = MemoryStage(url, partitions=2)
    made.broker.create_topic("told", 1)
    await made.create_tables()
    yield made
    await made.close()


@pytest.fixture(params=[Told, PlainTold])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def waits(stage: MemoryStage) -> Callable[[list[Any]], bool]:
    """Whether letters exist and none waits for its call."""
    return lambda found: bool(found) and not any(row.hook_at for row in found)


async def sent(stage: MemoryStage, run: Run, count: int) -> list[Any]:
    def published() -> list[Any]:
        return stage.broker.records("told")

    await run.until(lambda: len(published()) >= count, "what the calls published")
    return published()


def id_of(record: Any) -> bytes:
    return bytes(dict(record.headers)["message-id"])


async def test_each_dead_letter_is_given_to_it_once_with_what_it_writes_and_publishes(
    stage: MemoryStage, kind: Any
) -> None:
    for number, value in enumerate([b"good", b"bad", b"down", b"bad"]):
        stage.append(number, value=value, key=b"%d" % number)
    stage.broker.append(TOPIC, b"no id", key=b"x")
    handler = kind()
    async with stage.run(handler) as run:
        found = await until(stage, run, LETTERS, lambda rows: len(rows) == 4 and waits(stage)(rows))
        await until(stage, run, LETTERS, waits(stage))
        records = await sent(stage, run, 4)
    assert sorted(one.message_id for one in await stage.lines()) == [
        "(none) unidentified 0",
        "1 rejected 0",
        "2 exhausted 0",
        "3 rejected 0",
    ]
    assert sorted(one.id for one in handler.calls) == sorted(row.id for row in found)
    assert len({id_of(one) for one in records}) == len(records) == 4
    [exhausted] = [one for one in handler.calls if one.reason == "exhausted"]
    assert (exhausted.attempts, exhausted.message.value, exhausted.error) == (2, b"down", "as asked")
    assert exhausted.error_type.endswith("ProviderDown")
    # A restart calls nothing again, and neither does a second worker.
    async with stage.run(kind()) as one, stage.run(kind()) as other:
        await one.until(lambda: bool(one.seen(PartitionsAssigned) and other.seen(PartitionsAssigned)), "the start")
        stage.append(9, value=b"bad", key=b"9")
        await until(stage, one, LETTERS, lambda rows: len(rows) == 5 and waits(stage)(rows))
    assert len(await stage.lines()) == 5


async def test_a_letter_that_is_redriven_and_dies_again_is_given_to_it_again(stage: MemoryStage, kind: Any) -> None:
    stage.append(0, value=b"bad")
    async with stage.run(kind()) as run:
        await until(stage, run, LETTERS, waits(stage))
        await redrive(stage.url, Selection(), by="ann")
        await until(stage, run, LETTERS, lambda found: found[0].redrives == 1 and waits(stage)(found))
        await run.until(lambda: len(run.seen(MessageDeadLettered)) == 2, "the second death")
        await until(stage, run, LETTERS, waits(stage))
        records = await sent(stage, run, 2)
    assert sorted(one.message_id for one in await stage.lines()) == ["0 rejected 0", "0 rejected 1"]
    assert len({id_of(one) for one in records}) == 2


async def test_an_error_leaves_the_letter_as_it_is_and_is_tried_again(
    stage: MemoryStage, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letter_hook, "_FIRST_WAIT", 0.01)
    stage.append(0, value=b"bad")
    stage.append(1, value=b"good", key=b"other")
    failing = iter([ProviderDown("first"), StopIteration("second"), SystemExit(3)])

    def in_hook(letter: DeadLetteredMessage, context: Any) -> None:
        if (error := next(failing, None)) is not None:
            raise error

    handler = kind(in_hook)
    async with stage.run(handler) as run:
        [letter] = await until(stage, run, LETTERS, waits(stage))
        assert [(one.attempt, one.letter) for one in await until_seen(DeadLetterHookFailed, 3, run)] == [
            (1, letter.id),
            (2, letter.id),
            (3, letter.id),
        ]
        assert len(await sent(stage, run, 1)) == 1
    assert (letter.state, letter.error, letter.reason) == ("dead", "as asked", "rejected")
    assert len(handler.calls) == 4
    assert [one.message_id for one in await stage.lines()] == ["0 rejected 0"]


def commits(letter: DeadLetteredMessage, context: Any) -> Any:
    return context.session.commit()


def rolls_back(letter: DeadLetteredMessage, context: Any) -> Any:
    return context.session.rollback()


def swallows(letter: DeadLetteredMessage, context: Any) -> Any:
    async def in_coroutine() -> None:
        try:
            await context.session.execute(text("SELECT nothing FROM nowhere"))
        except Exception:
            return

    if not isinstance(context.session, Session):
        return in_coroutine()
    try:
        context.session.execute(text("SELECT nothing FROM nowhere"))
    except Exception:
        return None


@pytest.mark.parametrize("way", [commits, rolls_back, swallows])
async def test_a_call_that_ends_or_breaks_its_transaction_is_given_up_and_writes_nothing(
    stage: MemoryStage, kind: Any, way: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way is swallows and stage.url.startswith("sqlite"):
        return  # SQLite's transaction goes on after a failed statement
    monkeypatch.setattr(dead_letter_hook, "TRIES", 2)
    monkeypatch.setattr(dead_letter_hook, "_FIRST_WAIT", 0.01)
    stage.append(0, value=b"bad")
    async with stage.run(kind(way)) as run:
        [letter] = await until(stage, run, LETTERS, waits(stage))
        await run.until(lambda: len(run.seen(DeadLetterHookFailed)) == 2, "both tries")
        assert [one.wait is None for one in run.seen(DeadLetterHookFailed)] == [False, True]
    assert await stage.lines() == []
    assert "on_dead_letter failed" in letter.history
    assert letter.state == "dead"


async def test_a_call_that_ended_its_process_each_time_is_given_up(stage: MemoryStage, kind: Any) -> None:
    """The try is counted before the call, so the next process knows."""
    stage.append(0, value=b"bad")
    handler = kind()
    async with stage.run(handler, retention=None) as run:
        await until(stage, run, LETTERS, waits(stage))

    def as_after_deaths(session: Session) -> None:
        now = dialect_for(session.connection().dialect.name, DEFAULT_TABLES).in_seconds(0.0)
        session.execute(update(LETTERS).values(hook_at=now, hook_tries=dead_letter_hook.TRIES))

    await stage.database.run(as_after_deaths)
    again = kind()
    async with stage.run(again) as run:
        [letter] = await until(stage, run, LETTERS, waits(stage))
        [failed] = await until_seen(DeadLetterHookFailed, 1, run)
    assert (failed.wait, failed.error) == (
        None, "the process ended during the last call, or its failure was not recorded"
    )  # fmt: skip
    assert again.calls == []
    assert "on_dead_letter failed" in letter.history


async def test_a_call_under_way_has_the_grace_of_a_stop(stage: MemoryStage, kind: Any) -> None:
    called, ends = threading.Event(), threading.Event()

    def in_hook(_letter: DeadLetteredMessage, _context: Any) -> Any:
        called.set()
        return asyncio.to_thread(ends.wait, 60) if kind is Told else ends.wait(60)

    stage.append(0, value=b"bad")
    async with stage.run(kind(in_hook)) as run:
        await run.until(called.is_set, "the call")
        stopping = asyncio.create_task(run.stop())
        await asyncio.sleep(0.3)
        ends.set()
        assert await stopping
    [letter] = await stage.database.run(lambda session: list(session.execute(select(LETTERS))))
    assert (letter.hook_at, letter.hook_tries) == (None, 1)
    assert len(await stage.lines()) == 1


async def test_a_call_that_a_stop_cuts_off_is_made_again_at_once_and_not_counted(stage: MemoryStage) -> None:
    """Otherwise ten deployments would give up a call that never failed."""
    called = asyncio.Event()

    async def hangs() -> None:
        called.set()
        await asyncio.sleep(600)

    stage.append(0, value=b"bad")
    for _ in range(2):
        called.clear()
        async with stage.run(Told(lambda *_: hangs()), grace=0.5) as run:
            await asyncio.wait_for(called.wait(), 60)
            assert not await run.stop()
        [letter] = await stage.database.run(lambda session: list(session.execute(select(LETTERS))))
        assert letter.hook_tries == 0
        assert not run.seen(DeadLetterHookFailed)
    async with stage.run(handler := Told()) as run:
        [letter] = await until(stage, run, LETTERS, waits(stage))
    assert letter.hook_tries == 1
    assert len(handler.calls) == len(await stage.lines()) == 1


async def test_a_worker_that_lost_its_claim_on_a_letter_writes_nothing(stage: MemoryStage, kind: Any) -> None:
    """Another process has taken the letter since: only one of them has the call's changes."""
    stage.append(0, value=b"bad")
    handler = kind()
    async with stage.run(handler) as run:
        await until(stage, run, LETTERS, waits(stage))
        [engine] = run.worker._parts.engines
        hook: Any = engine._hook
        [row] = await stage.database.run(lambda session: list(session.execute(select(LETTERS))))
        await hook._one(row)
        assert not run.seen(DeadLetterHookFailed)
    assert len(handler.calls) == 1
    assert len(await stage.lines()) == 1


async def test_an_undo_that_failed_for_good_is_given_to_it(stage: MemoryStage, tmp_path: Path) -> None:
    class Buying(Refunding):
        async def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext) -> None:
            context.session.add(told(letter))

    def rejects(event: bytes) -> None:
        raise Reject("as asked")

    def fails(name: str) -> None:
        raise Reject("as asked")

    stage.append(0, value=b"v0")
    handler: AnyHandler = Buying(Provider(tmp_path / "charges"), in_handle=rejects, undo_fails=fails)
    async with stage.run(handler) as run:
        await until(stage, run, LETTERS, lambda found: len(found) == 3 and waits(stage)(found))
    assert sorted(one.message_id for one in await stage.lines()) == [
        "0 rejected 0",
        "0 undo_failed 0",
        "0 undo_failed 0",
    ]


async def test_letters_wait_for_no_method_that_the_handler_no_longer_has(
    stage: MemoryStage, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def in_hook(letter: DeadLetteredMessage, context: Any) -> None:
        raise ProviderDown("as asked")

    stage.append(0, value=b"bad")
    async with stage.run(kind(in_hook)) as run:
        await run.until(lambda: bool(run.seen(DeadLetterHookFailed)), "the call failed")

    def as_after_a_while(session: Session) -> None:
        past = dialect_for(session.connection().dialect.name, DEFAULT_TABLES).in_seconds(-2 * OVERDUE)
        session.execute(update(LETTERS).values(hook_at=past))

    await stage.database.run(as_after_a_while)
    async with stage.run(Silent()) as run:
        await run.until(lambda: bool(run.seen(PartitionsAssigned)), "the start")
        assert waits(stage)(await rows(stage, LETTERS))
    line = (
        "handler 'told': 1 dead letter waited for on_dead_letter, which the handler no longer has; it is not called "
        "for them: see `consumerkit dead-letters list`"
    )
    assert line in caplog.messages


async def test_a_letter_whose_message_is_handled_after_all_before_the_call_is_not_given_to_it(
    stage: MemoryStage, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the reaction to the failure would come after the success, and stand."""
    monkeypatch.setattr(dead_letter_hook, "_FIRST_WAIT", 3600.0)

    def in_hook(letter: DeadLetteredMessage, context: Any) -> None:
        if letter.message_id == "0":
            raise ProviderDown("as asked")

    handler = kind(in_hook)
    stage.append(0, value=b"bad")
    async with stage.run(handler) as run:
        await run.until(lambda: bool(run.seen(DeadLetterHookFailed)), "the call failed")
        handler.healed = True
        await redrive(stage.url, Selection(), by="ann")
        await until(stage, run, LETTERS, lambda found: found[0].state == "resolved")

    def due(session: Session) -> None:
        now = dialect_for(session.connection().dialect.name, DEFAULT_TABLES).in_seconds(0.0)
        session.execute(update(LETTERS).where(LETTERS.c.hook_at.is_not(None)).values(hook_at=now))

    await stage.database.run(due)
    again = kind()
    stage.append(1, value=b"bad", key=b"other")
    async with stage.run(again) as run:
        await until(stage, run, LETTERS, lambda found: len(found) == 2 and waits(stage)(found))
    assert [one.message_id for one in again.calls] == ["1"]


async def test_an_older_version_without_the_method_takes_no_letter_from_the_newer_one(
    stage: MemoryStage, kind: Any
) -> None:
    """While a deployment rolls, workers of both versions run: the letters wait for the newer one's call."""

    def in_hook(letter: DeadLetteredMessage, context: Any) -> None:
        raise ProviderDown("as asked")

    stage.append(0, value=b"bad")
    async with stage.run(kind(in_hook)) as run:
        await run.until(lambda: bool(run.seen(DeadLetterHookFailed)), "the call failed")
        async with stage.run(Silent()) as older:
            await older.until(lambda: bool(older.seen(PartitionsAssigned)), "the start")
    healed = kind()
    async with stage.run(healed) as run:
        await until(stage, run, LETTERS, waits(stage))
    assert len(healed.calls) == 1


async def test_a_call_whose_commit_has_no_answer_is_no_failure(stage: MemoryStage, kind: Any) -> None:
    lost_answers: list[int] = []

    def in_hook(letter: DeadLetteredMessage, context: Any) -> None:
        session = context.session if isinstance(context.session, Session) else context.session.sync_session
        committed = session.commit

        def lost() -> None:
            committed()
            lost_answers.append(letter.id)
            raise ConnectionError("as asked")

        vars(session)["commit"] = lost

    stage.append(0, value=b"bad")
    handler = kind(in_hook)
    async with stage.run(handler) as run:
        await until(stage, run, LETTERS, waits(stage))
        await sent(stage, run, 1)
        [engine] = run.worker._parts.engines
        await run.until(lambda: engine.oldest_transaction() == 0, "the end of the call")
        assert not run.seen(DeadLetterHookFailed)
    assert len(handler.calls) == len(lost_answers) == 1


async def test_a_plain_method_that_does_not_return_counts_as_a_transaction_under_way(stage: MemoryStage) -> None:
    """The watchdog, readiness and the log see it, as a handler that does not return."""
    ends = threading.Event()

    def in_hook(letter: DeadLetteredMessage, context: Any) -> None:
        assert ends.wait(60)

    stage.append(0, value=b"bad")
    handler = PlainTold(in_hook)
    async with stage.run(handler) as run:
        await run.until(lambda: bool(handler.calls), "the call")
        [engine] = run.worker._parts.engines
        assert engine.oldest_transaction() > 0
        ends.set()
        await until(stage, run, LETTERS, waits(stage))
        await run.until(lambda: engine.oldest_transaction() == 0, "the end of the call")


async def test_a_session_call_that_is_not_awaited_is_a_failed_call(
    stage: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the call would be recorded, and its change would be missing for ever."""
    monkeypatch.setattr(dead_letter_hook, "TRIES", 1)
    forgotten: list[Any] = []

    def in_hook(letter: DeadLetteredMessage, context: Any) -> None:
        forgotten.append(context.session.execute(text("SELECT 1")))

    stage.append(0, value=b"bad")
    async with stage.run(Told(in_hook)) as run:
        await until(stage, run, LETTERS, waits(stage))
        await run.until(lambda: bool(run.seen(DeadLetterHookFailed)), "the failure")
    assert "on_dead_letter called session.execute() without await" in run.seen(DeadLetterHookFailed)[0].error
    assert await stage.lines() == []
    forgotten.pop().close()
