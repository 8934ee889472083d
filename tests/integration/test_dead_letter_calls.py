"""Calls of `on_dead_letter` that wait are counted, and those that no worker will make are reported and ended."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, event, insert, text, update
from sqlalchemy.orm import Session

from consumerkit import Context, DeadLetterContext, DeadLetteredMessage, Handler, Reject, header
from consumerkit.engine import dead_letter_hook
from consumerkit.events import DeadLetterHookFailed, PartitionsAssigned, WorkerStarted
from consumerkit.monitoring import Metrics
from consumerkit.monitoring.backlog import Measuring, measure
from consumerkit.storage import left_behind
from consumerkit.storage.dead_letters import history
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.left_behind import OVERDUE
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.contracts.test_parking_cost import rows_in
from tests.integration.command import CommandLine
from tests.integration.memory_stage import TOPIC, MemoryStage, Write
from tests.integration.stage import Run
from tests.integration.step_stage import LETTERS, ProviderDown, rows, until
from tests.services import PostgresServer
from tests.services.tables import make_tables

BACKLOG = 4000
ACTIONS = DEFAULT_TABLES.operator_actions


class Ship(Handler[bytes]):
    """Its messages die, and its reaction fails."""

    name, topic, message_id = "ship", TOPIC, header("id")

    def __init__(self, *, healed: bool = False) -> None:
        self.healed = healed
        self.calls: list[int] = []

    async def handle(self, event: bytes, context: Context) -> None:
        raise Reject("as asked")

    async def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext) -> None:
        self.calls.append(letter.id)
        if not self.healed:
            raise ProviderDown("as asked")


@pytest.fixture(params=["postgresql", "sqlite"])
async def stage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MemoryStage]:
    monkeypatch.setattr(dead_letter_hook, "_LOOK", 0.05)
    monkeypatch.setattr(dead_letter_hook, "_FIRST_WAIT", 300.0)
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'letters.db'}"
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        url = postgres.url(request.getfixturevalue("database"))
    made = MemoryStage(url, partitions=2)
    await made.create_tables()
    yield made
    await made.close()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


async def leave_calls(stage: MemoryStage, count: int = 2) -> None:
    """Messages die, the calls for their letters fail, and the worker stops."""
    for number in range(count):
        stage.append(number, value=b"bad", key=b"%d" % number)
    async with stage.run(Ship()) as run:
        await run.until(lambda: len(run.seen(DeadLetterHookFailed)) == count, "the calls fail")


async def late(stage: MemoryStage, seconds: float, *letters: int) -> None:
    """Make the calls due for so many seconds."""
    past = dialect_for(stage.url.split(":")[0].split("+")[0], DEFAULT_TABLES).in_seconds(-seconds)
    due = update(LETTERS).where(LETTERS.c.hook_at.is_not(None)).values(hook_at=past)
    await stage.database.run(lambda session: session.execute(due.where(LETTERS.c.id.in_(letters)) if letters else due))


async def assigned(run: Run) -> None:
    """Wait until the worker has started, and its group has given it its partitions."""
    await run.until(lambda: bool(run.seen(WorkerStarted) and run.seen(PartitionsAssigned)), "the assignment")


async def said(command: CommandLine, *arguments: str) -> Any:
    return await asyncio.to_thread(command, *arguments)


def about_ship(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one for one in caplog.messages if one.startswith("handler 'ship': ")]


async def test_calls_that_wait_are_measured(stage: MemoryStage) -> None:
    await leave_calls(stage)
    [waits] = (await stage.database.run(lambda session: measure(session, DEFAULT_TABLES, ["ship"]))).handlers
    assert (waits.dead_letter_calls, waits.dead_letter_calls_due, waits.work_left) == (2, 0, 0)
    await late(stage, 60.0)
    [due] = (await stage.database.run(lambda session: measure(session, DEFAULT_TABLES, ["ship"]))).handlers
    assert (due.dead_letter_calls, due.dead_letter_calls_due, due.work_left) == (2, 2, 2)
    assert due.work_left_oldest_seconds == due.dead_letter_calls_due_oldest_seconds >= 60
    healed = Ship(healed=True)
    async with stage.run(healed) as run:
        await until(stage, run, LETTERS, lambda found: not any(row.hook_at for row in found))
    [done] = (await stage.database.run(lambda session: measure(session, DEFAULT_TABLES, ["ship"]))).handlers
    assert (done.dead_letter_calls, done.dead_letter_calls_due_oldest_seconds, done.work_left) == (0, 0.0, 0)


async def test_calls_of_a_handler_that_no_worker_has_are_reported_and_ended(
    stage: MemoryStage, command: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    """Its handler is renamed, or no longer deployed."""
    await leave_calls(stage)
    place = ("--database", stage.url)
    async with stage.run(Write()) as run:
        await assigned(run)
        assert run.worker.left_behind() == {}
    assert about_ship(caplog) == []
    end = ("dead-letters", "end-calls", "--handler", "ship", "--note", "told by hand", "--by", "ann", *place)
    early = await said(command, *end)
    assert early.out.splitlines() == [
        "no call of on_dead_letter is due",
        "2 calls not due: a worker is making them, or makes them again later",
    ]
    await late(stage, OVERDUE + 60)
    reason = (
        "2 dead letters wait for on_dead_letter, which no worker has called for 16 min; start a worker with this "
        "handler and the method, or, if it never runs again, end the calls: `consumerkit dead-letters "
        "end-calls --handler ship --note ...`"
    )
    async with stage.run(Write()) as run:
        await assigned(run)
        assert run.worker.readiness().ready
        assert run.worker.left_behind() == {"": 2}
        metrics = Metrics(registry := CollectorRegistry())
        metrics.measured(await Measuring(run.worker).measure())
        left = [registry.get_sample_value("consumerkit_left_behind", {"handler": name}) for name in ("", "write")]
        assert left == [2, 0]
    assert about_ship(caplog) == [f"handler 'ship': {reason}"]
    stats = await said(command, "db", "stats", *place)
    assert f"ship: {reason}" in stats.out.splitlines()
    assert "dead letters that wait for on_dead_letter" in stats.out
    counts = json.loads((await said(command, "db", "stats", "--json", *place)).out)
    assert counts["handlers"]["ship"]["dead_letter_calls"] == 2
    [first, _] = await rows(stage, LETTERS)
    shown = await said(command, "dead-letters", "show", str(first.id), *place)
    assert "on_dead_letter is to be called from" in shown.out

    given = await said(command, *end)
    assert given.out.splitlines() == ["ended 2 calls of on_dead_letter; the letters stay as they are"]
    found = await rows(stage, LETTERS)
    assert [(row.state, row.reason, row.hook_at) for row in found] == [("dead", "rejected", None)] * 2
    entries = [history.load(row.history)[-1] for row in found]
    assert {(one["what"], one["by"], one["note"]) for one in entries} == {
        ("on_dead_letter given up", "ann", "told by hand")
    }
    [action] = await rows(stage, ACTIONS)
    assert (action.actor, action.action) == ("ann", "give up calls of on_dead_letter")
    assert json.loads(action.details) == {"letters": sorted(row.id for row in found), "note": "told by hand"}
    async with stage.run(Write()) as run:
        await assigned(run)
        assert run.worker.left_behind() == {}
    healed = Ship(healed=True)
    stage.append(7, value=b"bad", key=b"7")
    async with stage.run(healed) as run:
        await until(stage, run, LETTERS, lambda found: len(found) == 3 and not any(row.hook_at for row in found))
    assert len(healed.calls) == 1


async def test_a_long_backlog_of_calls_that_another_worker_makes_is_not_left_behind(
    stage: MemoryStage, caplog: pytest.LogCaptureFixture
) -> None:
    """Its first letter is due for long, and the worker has just taken another one."""
    await leave_calls(stage, 3)
    first, *_ = sorted(row.id for row in await rows(stage, LETTERS))
    await late(stage, OVERDUE + 60, first)
    async with stage.run(Write()) as run:
        await assigned(run)
        assert run.worker.left_behind() == {}
    assert about_ship(caplog) == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--handler", "shp", "--note", "x"), "no handler 'shp' has started on this database; these have: 'ship'"),
        (("--handler", "ship", "--note", " "), "--note is empty: say why no worker will make these calls"),
    ],
)
async def test_ending_them_is_refused_without_a_reason_or_a_handler(
    stage: MemoryStage, command: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    await leave_calls(stage, 1)
    answer = await said(command, "dead-letters", "end-calls", *arguments, "--database", stage.url)
    assert answer.code != 0
    assert words in answer.err


def _fill(session: Session, waiting: int) -> None:
    make_tables(session)
    session.execute(text("INSERT INTO consumerkit_consumers (name, group_name, topics, created_at) "
                         "VALUES ('ship', 'ship', '[]', CURRENT_TIMESTAMP)"))  # fmt: skip
    one = {
        "consumer": session.execute(text("SELECT id FROM consumerkit_consumers WHERE name = 'ship'")).scalar_one(),
        **dict.fromkeys(("topic", "topic_id", "reason", "error_type", "error", "stack"), "x"),
        **dict.fromkeys(("partition", "timestamp", "size", "attempts"), 0),
        "headers": "[]",
    }
    session.execute(insert(LETTERS), [{**one, "offset": number} for number in range(BACKLOG)])
    dialect = dialect_for(session.connection().dialect.name, DEFAULT_TABLES)
    due = update(LETTERS).where(LETTERS.c.offset < waiting).values(hook_at=dialect.in_seconds(-5.0))
    session.execute(due)
    session.commit()


def _counts(session: Session) -> None:
    measure(session, DEFAULT_TABLES, ["ship"])
    left_behind.calls(session, DEFAULT_TABLES)


def test_counting_the_calls_that_wait_reads_no_other_letter(postgres: PostgresServer, database: str) -> None:
    engine = create_engine(postgres.url(database))
    looked_at: list[int] = []

    def explain(_: object, cursor: Any, statement: str, parameters: Any, *more: object) -> None:
        if "hook_at" in statement:
            with cursor.connection.cursor() as own:
                own.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
                found = own.fetchone()[0]
            plan = found if isinstance(found, list) else json.loads(found)
            looked_at.append(rows_in(plan[0]["Plan"]))

    with Session(engine) as session:
        _fill(session, waiting=10)
        session.execute(text("ANALYZE consumerkit_dead_letters"))
        session.commit()
        event.listen(engine, "before_cursor_execute", explain)
        _counts(session)
    engine.dispose()
    assert len(looked_at) == 2
    assert max(looked_at) <= 6 * 10, looked_at


def test_counting_the_calls_that_wait_uses_their_index_in_sqlite(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'letters.db'}")
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *more: object) -> None:
        if "hook_at" in statement:
            own = cursor.connection.cursor()
            own.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append(" ".join(row[3] for row in own.fetchall()))

    with Session(engine) as session:
        _fill(session, waiting=10)
        event.listen(engine, "before_cursor_execute", explain)
        _counts(session)
    engine.dispose()
    assert len(plans) == 2
    assert all("consumerkit_dead_letters_hook_at" in plan for plan in plans), plans
