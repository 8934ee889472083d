"""What `on_dead_letter` changes and publishes is there once for each death, whatever happens at the same time."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Column, text, update
from sqlalchemy.orm import Session
from typing_extensions import override

from consumerkit import DeadLetterContext, DeadLetteredMessage, Reject
from consumerkit.engine import dead_letter_hook
from consumerkit.events import DeadLetterHookFailed, MessageDeadLettered
from consumerkit.redrive import Selection, redrive, resolve
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.memory_stage import MemoryStage, opened
from tests.integration.step_stage import LETTERS, LOT, Provider, ProviderDown, Refunding, rejects, until
from tests.integration.test_on_dead_letter import PlainTold, Told, id_of, sent, told, waits
from tests.services import PostgresServer
from tests.services.tcp_proxy import Side, TcpProxy, until_one_ends


@pytest.fixture
async def stage(each_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryStage]:
    monkeypatch.setattr(dead_letter_hook, "_LOOK", 0.05)
    async with opened(each_url, partitions=2) as made:
        made.broker.create_topic("told", 1)
        yield made


@pytest.fixture(params=[Told, PlainTold])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


async def when(stage: MemoryStage, column: Column[Any], seconds: float) -> None:
    """Have all that waits for a moment be due in so many seconds."""

    def work(session: Session) -> None:
        moment = dialect_for(session.connection().dialect.name, DEFAULT_TABLES).in_seconds(seconds)
        session.execute(update(column.table).where(column.is_not(None)).values({column: moment}))

    await stage.database.run(work)


async def test_a_letter_that_is_redriven_before_its_call_and_dies_again_publishes_twice_under_two_ids(
    stage: MemoryStage, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one ID, who consumes them would take the second one for a duplicate."""
    monkeypatch.setattr(dead_letter_hook, "_FIRST_WAIT", 3600.0)
    failing = iter([ProviderDown("the first call")])

    def in_hook(letter: DeadLetteredMessage, context: Any) -> None:
        if (error := next(failing, None)) is not None:
            raise error

    handler = kind(in_hook)
    stage.append(0, value=b"bad")
    async with stage.run(handler) as run:
        await run.until(lambda: bool(run.seen(DeadLetterHookFailed)), "the call failed")
    await redrive(stage.url, Selection(), by="ann")
    await when(stage, LOT.c.due_at, 3600.0)
    await when(stage, LETTERS.c.hook_at, 0.0)
    async with stage.run(handler) as run:
        await sent(stage, run, 1)
    await when(stage, LOT.c.due_at, 0.0)
    async with stage.run(handler) as run:
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "the second death")
        records = await sent(stage, run, 2)
    assert len({id_of(one) for one in records}) == len(records) == 2


async def test_an_undo_that_fails_for_good_again_publishes_under_another_id(stage: MemoryStage, tmp_path: Path) -> None:
    class Buying(Refunding):
        async def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext) -> None:
            context.session.add(told(letter))
            context.publish("told", key=letter.message_id, value={"letter": letter.id})

    def fails(name: str) -> None:
        raise Reject("as asked")

    stage.append(0, value=b"v0")
    handler: Any = Buying(Provider(tmp_path / "charges"), in_handle=rejects, undo_fails=fails)
    async with stage.run(handler) as run:
        found = await until(stage, run, LETTERS, lambda rows: len(rows) == 3 and waits(stage)(rows))
        undos = [row.id for row in found if row.reason == "undo_failed"]
        [own] = [row.id for row in found if row.reason == "rejected"]
        await resolve(stage.url, Selection(ids=tuple(undos)), by="ann", note="refunded by hand")
        await redrive(stage.url, Selection(ids=(own,)), by="ann")
        await until(
            stage,
            run,
            LETTERS,
            lambda rows: [row.state for row in rows] == ["dead"] * 3 and waits(stage)(rows),
        )
        records = await sent(stage, run, 6)
    assert len({id_of(one) for one in records}) == len(records) == 6


class Silences(TcpProxy):
    """Passes on nothing more of the first connection that sends `mark`, from the time when it sends `at`.

    With `arrives` the server still gets that, and its answer is lost.
    """

    def __init__(self, address: str, mark: bytes, at: bytes, *, arrives: bool) -> None:
        super().__init__(address)
        self.silent = False
        self._mark, self._at, self._arrives = mark, at, arrives

    @override
    async def forward(self, near: Side, far: Side) -> None:
        marked = mine = False

        async def up() -> None:
            nonlocal marked, mine
            while data := await near.reader.read(65536):
                marked = marked or self._mark in data
                if marked and not self.silent and self._at in data:
                    self.silent = mine = True
                    if self._arrives:
                        far.writer.write(data)
                elif not mine:
                    far.writer.write(data)

        async def down() -> None:
            while data := await far.reader.read(65536):
                if not mine:
                    near.writer.write(data)

        await until_one_ends(up(), down())


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("at, arrives", [(b"falls silent", False), (b"COMMIT", False), (b"COMMIT", True)])
async def test_a_connection_that_falls_silent_ends_one_call_and_not_the_process(
    postgres: PostgresServer,
    database: str,
    driver: str,
    at: bytes,
    arrives: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dead_letter_hook, "_LOOK", 0.05)
    monkeypatch.setattr(dead_letter_hook, "_FIRST_WAIT", 0.05)

    async def in_hook(letter: DeadLetteredMessage, context: Any) -> None:
        await context.session.execute(text("SELECT 'falls silent'"))

    where = urlsplit(postgres.admin_dsn)
    async with (
        opened(postgres.url(database)) as stage,
        Silences(f"{where.hostname}:{where.port}", b"falls silent", at, arrives=arrives) as line,
    ):
        stage.broker.create_topic("told", 1)
        given = f"postgresql+{driver}://postgres@{line.address}/{database}"
        stage.append(0, value=b"bad")
        async with stage.run(Told(in_hook), database=given, transaction_timeout=1.0) as run:
            await sent(stage, run, 1)
            await until(stage, run, LETTERS, waits(stage))
            [engine] = run.worker._parts.engines
            await run.until(lambda: engine.oldest_transaction() == 0, "the end of the call")
        assert line.silent
        assert [one.message_id for one in await stage.lines()] == ["0 rejected 0"]
        assert len(stage.broker.records("told")) == 1
