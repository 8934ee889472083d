"""Rows that wait for code which is not deployed are reported, with the way out."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from consumerkit import Context, Defer, Handler, Reject, Retry, fixed, header
from consumerkit.events import PartitionsAssigned, RowsLeftBehind, StepUndoFailed, StepUndone, WorkerStarted
from consumerkit.redrive import Selection, redrive
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.left_behind import OVERDUE
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.command import CommandLine
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, line
from tests.integration.stage import Run, until_seen
from tests.integration.step_stage import LETTERS, LOT, STEPS, Provider, Refunding, rejects, rows, until
from tests.integration.test_undo import states
from tests.services import PostgresServer


class Stepless(Handler[bytes]):
    """A later version of the handler that charges: it has no steps any more."""

    name = "charge"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=3, wait=fixed(0.05))

    def __init__(self, *, healed: bool = True) -> None:
        self.healed = healed

    async def handle(self, event: bytes, context: Context) -> None:
        if not self.healed:
            raise Reject("as asked")
        context.session.add(line(context))


@pytest.fixture(params=["postgresql", "sqlite"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryStage]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'undo.db'}"
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        url = postgres.url(request.getfixturevalue("database"))
    made = MemoryStage(url, partitions=2)
    await made.create_tables()
    yield made
    await made.close()


@pytest.fixture
def provider(tmp_path: Path) -> Provider:
    return Provider(tmp_path / "charges")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


def not_yet(name: str) -> None:
    raise Defer(300, "not yet")


async def late(stage: MemoryStage, table: Any, seconds: float = 10.0) -> None:
    """Make what waits due for so many seconds."""
    past = dialect_for(stage.url.split(":")[0].split("+")[0], DEFAULT_TABLES).in_seconds(-seconds)
    column = "undo_at" if table is STEPS else "due_at"
    await stage.database.run(lambda session: session.execute(update(table).values(**{column: past})))


async def leave_undos(stage: MemoryStage, provider: Provider) -> None:
    """A message dies, its undos wait, and the worker stops."""
    stage.append(0, value=b"v0", partition=0)
    async with stage.run(Refunding(provider, in_handle=rejects, undo_fails=not_yet)) as run:
        await until(stage, run, STEPS, states(2, "undoing"))
        await run.until(lambda: bool(run.seen(StepUndoFailed)), "the undo waits")
        assert not run.seen(RowsLeftBehind)
        assert run.worker.readiness().ready


async def assigned(run: Run) -> None:
    """Wait until the worker has started, and its group has given it its partitions."""
    await run.until(lambda: bool(run.seen(WorkerStarted) and run.seen(PartitionsAssigned)), "the assignment")


async def said(command: CommandLine, *arguments: str) -> Any:
    return await asyncio.to_thread(command, *arguments)


async def test_undos_of_a_handler_without_steps_are_reported_and_given_up(
    stage: MemoryStage, provider: Provider, command: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    await leave_undos(stage, provider)
    reason = (
        "2 steps of dead messages wait to be undone, and the handler has no steps any more; start a version that has "
        "them, or give the undos up: `consumerkit undos give-up --handler charge --note ...`"
    )
    async with stage.run(Stepless()) as run:
        await assigned(run)
        [told] = run.seen(RowsLeftBehind)
        assert (told.handler, told.what, told.topic, told.count) == ("charge", "undos", "", 2)
        assert told.reason == reason
        [finding] = run.worker.readiness().findings
        assert (finding.handler, finding.what) == ("charge", reason)
        assert run.worker.left_behind() == {"charge": 2}
        place = ("--database", stage.url)
        early = await said(command, "undos", "give-up", "--handler", "charge", "--note", "gone", *place)
        assert "no undo is due" in early.out
        assert "2 undos not due" in early.out
        await late(stage, STEPS, OVERDUE + 60)
        stats = await said(command, "db", "stats", *place)
        assert "charge: 2 steps of dead messages wait to be undone, due for 16 min, and no worker undoes" in stats.out
        listed = await said(command, "undos", "list", *place, "--json")
        assert [json.loads(one)["step"] for one in listed.out.splitlines()] == ["charge", "reserve"]
        given = await said(command, "undos", "give-up", "--handler", "charge", "--note", "gone", "--by", "ann", *place)
        assert "gave up 2 undos" in given.out
    _, *undos = sorted(await rows(stage, LETTERS), key=lambda row: row.id)
    assert [(one.reason, one.message_id, one.state) for one in undos] == [("undo_failed", "0", "dead")] * 2
    assert "given up by ann: gone" in undos[0].error
    assert {row.state for row in await rows(stage)} == {"not undone"}
    assert "no step waits" in (await said(command, "undos", "list", "--database", stage.url)).out
    # The version that has the steps undoes them after a redrive.
    async with stage.run(Refunding(provider)) as run:
        await redrive(stage.url, Selection(ids=tuple(one.id for one in undos)), by="ann")
        await until(stage, run, STEPS, states(2, "undone"))
        assert {one.step for one in await until_seen(StepUndone, 2, run)} == {"charge", "reserve"}
    assert sorted(provider.charges()) == ["refunded-v0", "released-v0", "reserved-v0", "v0"]


async def test_a_version_without_steps_leaves_none_of_a_former_one_standing(
    stage: MemoryStage, provider: Provider
) -> None:
    """The message waits for its retry while the version changes, and dies with the new one."""

    def fails(event: bytes) -> None:
        raise Defer(300, "not yet")

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(Refunding(provider, in_handle=fails)) as run:
        await until(stage, run, LOT, lambda found: len(found) == 1)
    await late(stage, LOT)
    async with stage.run(Stepless(healed=False)) as run:
        await until(stage, run, LETTERS, lambda found: len(found) == 1)
        assert {row.state for row in await rows(stage)} == {"undoing"}
    async with stage.run(Stepless()) as run:
        await assigned(run)
        assert [one.count for one in run.seen(RowsLeftBehind)] == [2]
    async with stage.run(Refunding(provider)) as run:
        await until(stage, run, STEPS, states(2, "undone"))
        assert not run.seen(RowsLeftBehind)


async def test_rows_of_a_handler_that_no_worker_has_are_reported_once_they_are_late(
    stage: MemoryStage, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """Another service may have that handler, so it does not count for this worker's readiness."""

    def fails(event: bytes) -> None:
        if event == b"v1":
            raise Defer(300, "not yet")
        raise Reject("as asked")

    stage.append(0, value=b"v0", partition=0)
    stage.append(1, key=b"other", value=b"v1", partition=1)
    async with stage.run(Refunding(provider, in_handle=fails, undo_fails=not_yet)) as run:
        await until(stage, run, STEPS, lambda found: sum(row.state == "undoing" for row in found) == 2)
        await until(stage, run, LOT, lambda found: len(found) == 1)
        await run.until(lambda: bool(run.seen(StepUndoFailed)), "the undo waits")
    async with stage.run(Write()) as run:
        await assigned(run)
        assert not [one for one in caplog.messages if "'charge': " in one]
    await late(stage, STEPS, OVERDUE + 60)
    await late(stage, LOT, OVERDUE + 60)
    async with stage.run(Write()) as run:
        await assigned(run)
        assert run.worker.readiness().ready
    told = [one for one in caplog.messages if one.startswith("handler 'charge': ")]
    assert told == [
        (
            "handler 'charge': 2 steps of dead messages wait to be undone, due for 16 min, and no worker undoes them; "
            "start a worker with this handler and its steps, or, if it never runs again, give the undos up: "
            "`consumerkit undos give-up --handler charge --note ...`"
        ),
        (
            "handler 'charge': 1 parked message, due for 16 min, and no worker runs them; start a worker with this "
            "handler, or look at the one that has it"
        ),
    ]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ("--handler", "charg", "--note", "x"),
            "no handler 'charg' has started on this database; these have: 'charge'",
        ),
        (("--handler", "charge", "--note", " "), "--note is empty: say why no worker will undo these steps"),
    ],
)
async def test_giving_up_is_refused_without_a_reason_or_a_handler(
    stage: MemoryStage, command: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    async with stage.run(Stepless()) as run:
        await assigned(run)
    answer = await said(command, "undos", "give-up", *arguments, "--database", stage.url)
    assert answer.code != 0
    assert words in answer.err
