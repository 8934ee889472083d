"""A fault of one message stays its own: it stops no handler, delays no other message, and has its attempts."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from consumerkit import Brake, Context, Handler, Ordering, Retry, fixed, header
from consumerkit.engine.transaction.reduced import UNSTORABLE
from consumerkit.events import (
    AttemptFailed,
    HandlerPaused,
    HandlerResumed,
    HandlerStopped,
    MessageDeadLettered,
    MessageSuspected,
)
from consumerkit.worker import readiness
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, line, opened
from tests.integration.stage import Run
from tests.services import PostgresServer
from tests.variants import further_cases

RETRY = Retry(attempts=2, wait=fixed(0))
Before = Callable[[Context], Awaitable[None]]


@pytest.fixture(params=["psycopg", "asyncpg"])
async def server_place(
    request: pytest.FixtureRequest, postgres: PostgresServer, database: str
) -> AsyncIterator[MemoryStage]:
    async for made in _made(postgres.url(database, request.param)):
        yield made


@pytest.fixture(params=["psycopg", "asyncpg", "sqlite"])
async def place(
    request: pytest.FixtureRequest, postgres: PostgresServer, database: str, tmp_path: Path
) -> AsyncIterator[MemoryStage]:
    is_sqlite = request.param == "sqlite"
    url = f"sqlite+aiosqlite:///{tmp_path}/db" if is_sqlite else postgres.url(database, request.param)
    async for made in _made(url):
        yield made


async def _made(url: str, partitions: int = 1) -> AsyncIterator[MemoryStage]:
    async with opened(url, partitions=partitions) as made:
        yield made


class PlainWrite(Handler[bytes]):
    """Adds a line for each message, with a plain function, after `before` has let it."""

    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = RETRY

    def __init__(self, before: Callable[[Context[Session]], object]) -> None:
        self.before = before

    def handle(self, event: bytes, context: Context[Session]) -> None:
        context.session.add(line(context))
        self.before(context)


def executes(*statements: str) -> Before:
    async def before(context: Context) -> None:
        for statement in statements:
            await context.session.execute(text(statement))

    return before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TEMP TABLE scratch (n int) ON COMMIT DROP",
        "CREATE TEMP TABLE scratch (n int)",
        *further_cases(
            "DECLARE rows CURSOR FOR SELECT 1", "DECLARE rows CURSOR WITH HOLD FOR SELECT 1", "PREPARE one AS SELECT 1"
        ),
    ],
)
async def test_messages_that_make_the_same_object_cannot_share_a_transaction(
    server_place: MemoryStage, statement: str
) -> None:
    place, total = server_place, 60
    for number in range(total):
        place.append(number, key=b"%d" % number)
    handler = Write(executes(statement))
    async with place.run(handler) as run:
        await place.until_written(run, total)
        assert not run.task.done()
    assert not run.seen(AttemptFailed)
    assert not run.seen(MessageDeadLettered)
    assert len(handler.seen) < 3 * total


async def test_on_sqlite_messages_that_make_the_same_object_do_not_meet_what_another_left(tmp_path: Path) -> None:
    async for place in _made(f"sqlite+aiosqlite:///{tmp_path}/db"):
        for number in range(20):
            place.append(number, key=b"%d" % number)
        async with place.run(Write(executes("CREATE TEMP TABLE scratch (n int)"))) as run:
            await place.until_written(run, 20)
        assert not run.seen(AttemptFailed)
        assert not run.seen(MessageDeadLettered)


async def test_a_plain_handler_finds_what_an_earlier_message_left(postgres: PostgresServer, database: str) -> None:
    async for place in _made(postgres.url(database)):
        for number in range(20):
            place.append(number, key=b"%d" % number)
        handler = PlainWrite(lambda context: context.session.execute(text("PREPARE one AS SELECT 1")))
        async with place.run(handler) as run:
            await place.until_written(run, 20)
        assert not run.seen(AttemptFailed)


async def test_an_object_that_is_always_there_is_its_messages_own_fault(place: MemoryStage) -> None:
    async def before(context: Context) -> None:
        if context.message_id == "7":
            await context.session.execute(text("CREATE TABLE lines (n int)"))

    for number in range(20):
        place.append(number, key=b"%d" % number)
    async with place.run(Write(before, retry=RETRY)) as run:
        await place.until_written(run, 19)
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "the dead letter")
    assert [event.attempt for event in run.seen(AttemptFailed)] == [1, 2]
    assert [event.message_id for event in run.seen(MessageDeadLettered)] == ["7"]


async def test_an_error_in_prefetch_is_found_by_halving(place: MemoryStage) -> None:
    total, bad = 1000, {str(number) for number in range(37, 1000, 100)}
    transactions = 0

    class Prefetching(Write):
        batch_size = 100

        async def prefetch(self, events: list[bytes], session: object) -> None:
            nonlocal transactions
            transactions += 1
            if any(event.decode() in bad for event in events):
                raise ValueError("no such row")

    for number in range(total):
        place.append(number, key=b"%d" % number, value=b"%d" % number)
    async with place.run(Prefetching(retry=Retry(attempts=1))) as run:
        await place.until_written(run, total - len(bad))
        await run.until(lambda: len(run.seen(MessageDeadLettered)) == len(bad), "the dead letters")
    assert {event.message_id for event in run.seen(MessageDeadLettered)} == bad
    assert transactions < 40 * len(bad)


def only(number: str, *statements: str) -> Before:
    run = executes(*statements)

    async def before(context: Context) -> None:
        if context.message_id == number:
            await run(context)

    return before


async def check_one_is_bad(place: MemoryStage, handler: Write | PlainWrite, bad: str, total: int = 20) -> Run:
    """All messages but one are done, and that one has the attempts of its `retry`, and no more."""
    for number in range(total):
        place.append(number, key=b"%d" % number)
    async with place.run(handler) as run:
        await place.until_written(run, total - 1)
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "the dead letter")
        assert not run.task.done()
    assert {event.message_id for event in run.seen(MessageDeadLettered)} == {bad}
    assert {line.message_id for line in await place.lines()} == {str(n) for n in range(total)} - {bad}
    assert [event.attempt for event in run.seen(AttemptFailed)] == [1, 2]
    assert not run.seen(HandlerStopped)
    return run


ON_THE_SERVER = {
    "function for other types": ["SELECT make_interval(days => 3000000000)"],
    "table of an unknown tenant": ["SELECT * FROM tenant_9.lines"],
    "unknown column": ["SELECT absent FROM lines"],
    "type that is not known": ["PREPARE p AS SELECT $1 IS NULL"],
    "right that is missing": ["SET LOCAL ROLE pg_monitor", "SELECT * FROM lines"],
    "refused by a policy": ["SET LOCAL ROLE tenant", "INSERT INTO guarded VALUES (2)"],
    "raised by code, 42501": ["DO $$ BEGIN RAISE insufficient_privilege; END $$"],
    "raised by code, 57P01": ["DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '57P01'; END $$"],
    "raised by code, 53100": ["DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '53100'; END $$"],
    "raised by code, 40001": ["DO $$ BEGIN RAISE serialization_failure; END $$"],
    "raised by code, 08006": ["DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '08006'; END $$"],
    "statement_timeout of its own": ["SET LOCAL statement_timeout = 20", "SELECT pg_sleep(30)"],
    "lock_timeout of its own": ["SET LOCAL lock_timeout = 20", "LOCK TABLE locked"],
    "NOWAIT": ["LOCK TABLE locked NOWAIT"],
    "temp_file_limit": [
        "SET LOCAL temp_file_limit = '64kB'",
        "SET LOCAL work_mem = '64kB'",
        "SELECT count(*) FROM (SELECT n FROM generate_series(1, 200000) AS n ORDER BY n DESC) AS sorted",
    ],
    "prepared elsewhere": ["EXECUTE prepared_elsewhere"],
    "schema": ["CREATE TABLE nowhere.t (n int)"],
}


@pytest.fixture
async def with_locks(server_place: MemoryStage, postgres: PostgresServer) -> AsyncIterator[MemoryStage]:
    """A place with a table that somebody holds locked, and one that a policy guards."""
    dsn = server_place.url.replace("+psycopg", "").replace("+asyncpg", "")
    with psycopg.connect(dsn, autocommit=True) as admin, psycopg.connect(dsn) as holder:
        admin.execute("CREATE TABLE locked (n int)")
        admin.execute("CREATE TABLE guarded (n int)")
        with suppress(psycopg.errors.DuplicateObject):
            admin.execute("CREATE ROLE tenant")
        admin.execute("GRANT ALL ON guarded TO tenant")
        admin.execute("ALTER TABLE guarded ENABLE ROW LEVEL SECURITY")
        admin.execute("CREATE POLICY own ON guarded USING (n = 1)")
        holder.execute("LOCK TABLE locked")
        yield server_place
        holder.rollback()
        admin.execute("DROP OWNED BY tenant")


@pytest.mark.parametrize("what", ON_THE_SERVER)
async def test_a_message_that_the_server_refuses_alone_has_its_attempts(with_locks: MemoryStage, what: str) -> None:
    await check_one_is_bad(with_locks, Write(only("7", *ON_THE_SERVER[what]), retry=RETRY), "7")


async def test_what_sqlite_does_not_find_is_one_messages_fault(tmp_path: Path) -> None:
    async for place in _made(f"sqlite+aiosqlite:///{tmp_path}/db"):
        await check_one_is_bad(place, Write(only("7", "SELECT * FROM tenant_9"), retry=RETRY), "7")


async def test_a_plain_handler_whose_message_is_refused(postgres: PostgresServer, database: str) -> None:
    def before(context: Context[Session]) -> None:
        if context.message_id == "7":
            context.session.execute(text("SET LOCAL statement_timeout = 20"))
            context.session.execute(text("SELECT pg_sleep(30)"))

    async for place in _made(postgres.url(database)):
        await check_one_is_bad(place, PlainWrite(before), "7")


async def test_order_by_partition_leaves_it_to_the_retry(place: MemoryStage) -> None:
    handler = Write(only("7", "SELECT * FROM tenant_9"), retry=RETRY, ordering=Ordering.PARTITION)
    await check_one_is_bad(place, handler, "7")


async def test_one_key_leaves_it_to_the_retry(place: MemoryStage) -> None:
    for number in range(12):
        place.append(number, key=b"k")
    async with place.run(Write(only("3", "SELECT * FROM tenant_9"), retry=RETRY)) as run:
        await place.until_written(run, 11)
    assert [event.message_id for event in run.seen(MessageDeadLettered)] == ["3"]


async def test_a_suspect_with_nothing_behind_it_says_so_until_another_message_has_run(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "SUSPECTED", 0.0)
    place.append(7, key=b"7")
    async with place.run(Write(only("7", "SELECT * FROM tenant_9"), retry=RETRY)) as run:
        await run.until(lambda: len(run.seen(MessageSuspected)) > 2, "some runs")
        await run.until(lambda: "consumerkit parked retry-now" in str(run.worker.readiness()), "the way out")
        assert not run.seen(AttemptFailed)
        place.append(8, key=b"8")
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "the dead letter")
        await place.until_written(run, 1)
    assert [event.attempt for event in run.seen(AttemptFailed)] == [1, 2]


async def test_another_database_that_is_away_is_its_messages_trouble(place: MemoryStage) -> None:
    away = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/nowhere")

    async def before(context: Context) -> None:
        if context.message_id == "7":
            async with away.connect() as connection:
                await connection.execute(text("SELECT 1"))

    await check_one_is_bad(place, Write(before, retry=RETRY), "7")
    await away.dispose()


@pytest.mark.parametrize("ordering", Ordering)
async def test_what_all_messages_lack_pauses_the_handler_and_is_no_attempt(
    place: MemoryStage, ordering: Ordering
) -> None:
    total = 30
    for number in range(total):
        place.append(number, key=b"%d" % (number % 10))
    brake = Brake(probe=fixed(0.2))
    handler = Write(executes("INSERT INTO absent VALUES (1)"), retry=RETRY, ordering=ordering, brake=brake)
    async with place.run(handler) as run:
        await run.until(lambda: bool(run.seen(HandlerPaused)), "the pause")
        seen = len(handler.seen)
        await run.until(lambda: len(handler.seen) > seen + 3, "some probes")
        assert not run.worker.readiness().ready
        await place.database.run(lambda session: session.execute(text("CREATE TABLE absent (n int)")).close())
        dead = len(run.seen(MessageDeadLettered))
        assert dead <= (1 if ordering is Ordering.PARTITION else 0)
        await place.until_written(run, total - dead)
        assert not run.task.done()
        await run.until(lambda: bool(run.seen(HandlerResumed)), "the end of the pause")
    assert len(run.seen(MessageDeadLettered)) == dead
    assert not run.seen(HandlerStopped)
    (first, *_) = run.seen(HandlerPaused)
    assert "absent" in first.error
    assert ("dead-letters redrive" in first.error) == bool(dead)


async def test_a_limit_of_ours_that_runs_out_is_never_an_attempt(server_place: MemoryStage) -> None:
    place, slow = server_place, True

    async def before(context: Context) -> None:
        if context.message_id == "7" and slow:
            await context.session.execute(text("SELECT pg_sleep(30)"))

    for number in range(20):
        place.append(number, key=b"%d" % number)
    async with place.run(Write(before, retry=RETRY), transaction_timeout=1.0) as run:
        await place.until_written(run, 19)
        await run.until(lambda: len(run.seen(MessageSuspected)) >= 3, "some runs", within=60)
        slow = False
        await place.until_written(run, 20)
    assert not run.seen(AttemptFailed)
    assert not run.seen(MessageDeadLettered)


@pytest.mark.parametrize("bad", ["a\x00b", 7], ids=["NUL", "int for text"])
async def test_a_statement_that_fails_on_the_clients_side_has_its_end(server_place: MemoryStage, bad: object) -> None:
    if bad == 7 and "psycopg" in server_place.url:
        bad = object()  # psycopg sends a number as it is, and knows no way to send this

    async def before(context: Context) -> None:
        if context.message_id == "7":
            with suppress(Exception):
                await context.session.execute(text("SELECT CAST(:t AS text)"), {"t": bad})
                raise AssertionError("the statement was sent")
            await asyncio.sleep(30)

    for number in range(20):
        server_place.append(number, key=b"%d" % number)
    async with server_place.run(Write(before, retry=RETRY), transaction_timeout=1.0) as run:
        await server_place.until_written(run, 19)
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "the dead letter")
    # It overran its time by itself, which is an attempt; a database that is silent would be waited for instead.
    assert [event.attempt for event in run.seen(AttemptFailed)] == [1, 2]


async def test_a_plain_handlers_statement_that_fails_on_the_clients_side(
    postgres: PostgresServer, database: str
) -> None:
    def before(context: Context[Session]) -> None:
        if context.message_id == "7":
            with suppress(Exception):
                context.session.execute(text("SELECT CAST(:t AS text)"), {"t": "a\x00b"})
            time.sleep(2.5)

    async for place in _made(postgres.url(database)):
        for number in range(20):
            place.append(number, key=b"%d" % number)
        async with place.run(PlainWrite(before), transaction_timeout=1.0) as run:
            await place.until_written(run, 19)
            await run.until(lambda: bool(run.seen(MessageDeadLettered)), "the dead letter")
        assert [event.attempt for event in run.seen(AttemptFailed)] == [1, 2]


@pytest.mark.parametrize("table", ["consumerkit_parked_messages", "consumerkit_dead_letters"])
@pytest.mark.parametrize("allowed", ["ASCII", "nothing"])
async def test_a_record_of_ours_that_the_database_refuses_is_written_in_a_reduced_form(
    place: MemoryStage, table: str, allowed: str
) -> None:
    """As a database of another encoding would refuse it, which is found at the start."""
    await place.database.run(lambda session: refuse(session, table, allowed))

    async def before(context: Context) -> None:
        if context.message_id == "7":
            raise ValueError("счёт закрыт")

    await check_one_is_bad(place, Write(before, retry=Retry(attempts=2, wait=fixed(0.1))), "7")
    query = text("SELECT error FROM consumerkit_dead_letters")
    error = await place.database.run(lambda session: session.execute(query).scalar_one())
    if table == "consumerkit_dead_letters":
        whole = "счёт закрыт".encode("ascii", "backslashreplace").decode()
        assert error == (UNSTORABLE if allowed == "nothing" else whole)
    else:
        assert error == "счёт закрыт"


def refuse(session: Session, table: str, allowed: str) -> None:
    """Have a table refuse errors whose words are not `allowed`."""
    if session.get_bind().dialect.name == "sqlite":
        wrong = (
            "NEW.error GLOB '*[^ -~]*'" if allowed == "ASCII" else "NEW.error LIKE '%\\u%' OR NEW.error GLOB '*[^ -~]*'"
        )
        for event in ("INSERT", "UPDATE"):
            body = "BEGIN SELECT RAISE(ABORT, 'encoding'); END"
            session.execute(text(f"CREATE TRIGGER refuse_{event} BEFORE {event} ON {table} WHEN {wrong} {body}"))
        return
    wrong = "[^ -~]" if allowed == "ASCII" else "[^ -~]|u0"
    session.execute(
        text(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF NEW.error ~ '{wrong}' THEN RAISE EXCEPTION 'encoding' USING ERRCODE = '22P05'; END IF; "
            "RETURN NEW; END $$"
        )
    )
    session.execute(
        text(f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()")
    )
