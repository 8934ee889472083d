"""`message_status` on every database and driver; it leaves no trace in its caller's transaction."""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, insert, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from consumerkit import Context, Handler, MessageState, MessageStatus, Outcome, Reason, header, message_status
from consumerkit.handlers.message_id import possible_digests
from consumerkit.message import Message
from consumerkit.storage import consumers
from consumerkit.storage.database import Database
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.dialects import Claim, dialect_for
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import ParkedMessage
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.services import PostgresServer
from tests.services.tables import make_tables

ON_SERVER = ["psycopg", "psycopg in coroutines", "asyncpg"]
LEDGER = DEFAULT_TABLES.processed_messages


class Credit(Handler[bytes]):
    name = "credit"
    topic = "payments"
    message_id = header("message-id")

    async def handle(self, event: bytes, context: Context) -> None: ...


class Desk:
    """A session that asks, through one driver, and a ledger to write into, through another."""

    def __init__(self, url: str, *, coroutines: bool) -> None:
        self.url = url
        self.database = Database(url)
        sessions = self.database.async_sessions if coroutines else self.database.sync_sessions
        assert sessions is not None
        self.session: AsyncSession | Session = sessions()
        self.engine: Engine = create_engine(url.replace("+asyncpg", "+psycopg"))
        with Session(self.engine) as session, session.begin():
            make_tables(session)
        with Session(self.engine) as session, session.begin():
            number = consumers.bind(session, DEFAULT_TABLES, name="credit", group="credit", topics=["payments"])
        self.ledger = Ledger(DEFAULT_TABLES, dialect_for(self.engine.dialect.name, DEFAULT_TABLES), number)

    async def ask(self, *id: str, **settings: Any) -> MessageStatus:
        answer = message_status(self.session, Credit, *id, **settings)
        return await answer if inspect.isawaitable(answer) else answer

    async def do(self, work: Any) -> Any:
        """Run synchronous work on the session that asks."""
        if isinstance(self.session, AsyncSession):
            return await self.session.run_sync(work)
        return work(self.session)

    async def scalar(self, statement: str) -> Any:
        return await self.do(lambda session: session.scalar(text(statement)))

    async def over(self) -> None:
        """End the transaction of the session that asks."""
        await self.do(Session.rollback)

    def claim(self, name: str, outcome: Outcome, result: object = None) -> None:
        with Session(self.engine) as session, session.begin():
            connection = session.connection()
            self.ledger.claim(connection, [claim(name, outcome)])
            if result is not None:
                self.ledger.keep_results(connection, {digest(name): json.dumps(result)})

    def park(self, name: str, **parts: Any) -> None:
        self.claim(name, Outcome.PARKED)
        given: dict[str, Any] = {
            "message": record(),
            "digest": digest(name),
            "message_id": name,
            "fingerprint": b"f" * 16,
        } | parts
        with Session(self.engine) as session, session.begin():
            ParkingLot(DEFAULT_TABLES, self.ledger.dialect, self.ledger.consumer).park(
                session.connection(), [ParkedMessage(**given)]
            )

    def dead_letter(self, name: str, reason: Reason, offset: int) -> None:
        dead = DeadMessage(
            message=record(offset), digest=digest(name), message_id=name, reason=reason,
            error_type="shop.Refused", error="secret", attempts=3,
        )  # fmt: skip
        with Session(self.engine) as session, session.begin():
            dead_letters.add(session.connection(), DEFAULT_TABLES, self.ledger.consumer, [dead])

    def execute(self, statement: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(statement)

    def rows(self) -> int:
        with self.engine.connect() as connection:
            return len(connection.execute(LEDGER.select()).all())

    async def close(self) -> None:
        closing = self.session.close()
        if inspect.isawaitable(closing):
            await closing
        await self.database.dispose()
        self.engine.dispose()


def digest(name: str) -> bytes:
    return possible_digests(name)[0]


def claim(name: str, outcome: Outcome = Outcome.PROCESSED) -> Claim:
    return Claim(digest(name), name, b"f" * 16, outcome)


def record(offset: int = 0) -> Message:
    return Message("payments", 0, offset, b"alice", b"secret", (), 0, "T1")


def _desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    name, _, coroutines = request.param.partition(" in ")
    if "sqlite" in name:
        return Desk(f"sqlite:///{tmp_path}/status.sqlite", coroutines=name == "aiosqlite")
    server: PostgresServer = request.getfixturevalue("postgres")
    return Desk(server.url(request.getfixturevalue("database"), name), coroutines=bool(coroutines) or name == "asyncpg")


@pytest.fixture(params=[*ON_SERVER, "pysqlite", "aiosqlite"])
async def desk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Desk]:
    made = _desk(request, tmp_path)
    yield made
    await made.close()


@pytest.fixture(params=ON_SERVER)
async def server_desk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Desk]:
    made = _desk(request, tmp_path)
    yield made
    await made.close()


def recent(moment: datetime | None) -> bool:
    return moment is not None and moment.tzinfo is UTC and abs(datetime.now(UTC) - moment) < timedelta(minutes=5)


# The states.


async def test_processed_tells_when_and_what_the_handler_returned(desk: Desk) -> None:
    desk.claim("pay-1", Outcome.PROCESSED, {"credited": [1, "ü"]})
    desk.claim("pay-2", Outcome.PROCESSED)
    found = await desk.ask("pay-1")
    assert (found.handler, found.message_id, found.state) == ("credit", "pay-1", MessageState.PROCESSED)
    assert found.result == {"credited": [1, "ü"]}
    assert recent(found.since)
    assert found.known
    assert (await desk.ask("pay-2")).result is None


async def test_parked_tells_attempts_and_when_the_next_is_due(desk: Desk) -> None:
    desk.park("pay-1", wait=3600.0, attempts=2, error_type="shop.Timeout", error="secret")
    found = await desk.ask("pay-1")
    assert (found.state, found.attempts, found.error_type) == (MessageState.PARKED, 2, "shop.Timeout")
    assert found.due_at is not None
    assert timedelta(minutes=58) < found.due_at - datetime.now(UTC) < timedelta(minutes=62)
    assert recent(found.since)
    assert "secret" not in repr(found)


async def test_parked_tells_what_waits_behind_another(desk: Desk) -> None:
    desk.park("first", wait=3600.0)
    desk.park("behind", message=record(1))
    found = await desk.ask("behind")
    assert (found.state, found.attempts, found.due_at) == (MessageState.PARKED, 0, None)


async def test_dead_tells_why_and_the_letter_and_what_became_of_it(desk: Desk) -> None:
    desk.claim("pay-1", Outcome.DEAD)
    desk.dead_letter("pay-1", Reason.REJECTED, 1)
    found = await desk.ask("pay-1")
    assert (found.state, found.reason, found.error_type) == (MessageState.DEAD, Reason.REJECTED, "shop.Refused")
    assert (found.attempts, found.letter, found.letter_state) == (3, 1, "dead")
    assert recent(found.since)
    assert "secret" not in repr(found)
    assert not found.held
    await desk.over()
    with Session(desk.engine) as session, session.begin():
        lot = ParkingLot(DEFAULT_TABLES, desk.ledger.dialect, desk.ledger.consumer)
        given = ParkedMessage(message=record(1), digest=digest("pay-1"), message_id="pay-1", fingerprint=b"f" * 16)
        lot.park(session.connection(), [given])
        session.execute(update(DEFAULT_TABLES.parked_messages).values(kind="held", dead_letter=1))
    assert (await desk.ask("pay-1")).held
    await desk.over()
    desk.execute(update(DEFAULT_TABLES.dead_letters).values(state="discarded"))
    assert (await desk.ask("pay-1")).letter_state == "discarded"
    await desk.over()
    desk.execute(DEFAULT_TABLES.dead_letters.delete())
    gone = await desk.ask("pay-1")
    assert (gone.state, gone.letter, gone.reason) == (MessageState.DEAD, None, None)
    assert recent(gone.since)


async def test_a_conflict_is_told_beside_what_became_of_the_first_payload(desk: Desk) -> None:
    desk.claim("pay-1", Outcome.PROCESSED)
    desk.dead_letter("pay-1", Reason.CONFLICT, 7)
    desk.dead_letter("pay-2", Reason.CONFLICT, 8)
    found = await desk.ask("pay-1")
    assert (found.state, found.conflicts, found.letter) == (MessageState.PROCESSED, (1,), None)
    forgotten = await desk.ask("pay-2")
    assert (forgotten.state, forgotten.conflicts) == (MessageState.UNKNOWN, (2,))


async def test_a_dead_letter_without_a_row_in_the_ledger_is_dead(desk: Desk) -> None:
    desk.dead_letter("pay-1", Reason.OVERSIZED, 1)
    assert (await desk.ask("pay-1")).state is MessageState.DEAD


async def test_unknown_tells_whether_it_may_have_been_forgotten(desk: Desk) -> None:
    found = await desk.ask("pay-1")
    assert (found.state, found.known, found.may_be_forgotten) == (MessageState.UNKNOWN, False, False)
    row = {"consumer": desk.ledger.consumer, "topic": "payments", "partition": 3, "owner": b"o" * 16}
    await desk.over()
    desk.execute(insert(DEFAULT_TABLES.partition_progress).values(**row))
    assert not (await desk.ask("pay-1")).may_be_forgotten
    await desk.over()
    desk.execute(update(DEFAULT_TABLES.partition_progress).values(forgotten_below=1))
    assert (await desk.ask("pay-1")).may_be_forgotten


async def test_another_handlers_ids_are_not_told(desk: Desk) -> None:
    desk.claim("pay-1", Outcome.PROCESSED)
    answer = message_status(desk.session, "mail", "pay-1")
    assert not (await answer if inspect.isawaitable(answer) else answer).known
    await desk.over()
    with Session(desk.engine) as session, session.begin():
        consumers.bind(session, DEFAULT_TABLES, name="mail", group="mail", topics=["payments"])
    answer = message_status(desk.session, "mail", "pay-1")
    assert not (await answer if inspect.isawaitable(answer) else answer).known


async def test_the_callers_pending_changes_are_neither_flushed_nor_lost(desk: Desk) -> None:
    from tests.integration.memory_stage import Base, Line

    Base.metadata.create_all(desk.engine)
    line = Line(message_id="x", key=None, partition=0, offset=0)
    await desk.do(lambda session: session.add(line))
    await desk.ask("pay-1")
    assert await desk.do(lambda session: line in session.new)
    await desk.do(Session.commit)
    with Session(desk.engine) as session:
        assert session.query(Line).count() == 1
    assert desk.rows() == 0


# In flight.


class Holder:
    """A worker's transaction in the middle of its handler: a claim that is not committed."""

    def __init__(self, desk: Desk, name: str) -> None:
        self.connection = desk.engine.connect()
        desk.ledger.claim(self.connection, [claim(name)])

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


async def test_a_claim_that_is_not_committed_is_in_flight_and_is_not_waited_for(server_desk: Desk) -> None:
    with Holder(server_desk, "pay-1"):
        # The claim is committed only after this block: a wait for it would never end.
        assert (await asyncio.wait_for(server_desk.ask("pay-1"), 120)).state is MessageState.IN_FLIGHT
        other = await server_desk.ask("pay-2")
        assert (other.state, other.probed) == (MessageState.UNKNOWN, True)
        unprobed = await server_desk.ask("pay-1", probe=False)
        assert (unprobed.state, unprobed.probed) == (MessageState.UNKNOWN, False)
    assert (await server_desk.ask("pay-1")).state is MessageState.UNKNOWN


async def test_a_claim_that_is_committed_meanwhile_is_processed(server_desk: Desk) -> None:
    with Holder(server_desk, "pay-1") as holder:
        assert (await server_desk.ask("pay-1")).state is MessageState.IN_FLIGHT
        holder.connection.commit()
        assert (await server_desk.ask("pay-1")).state is MessageState.PROCESSED


async def test_no_claim_is_left_behind_when_the_caller_commits(server_desk: Desk) -> None:
    await server_desk.do(lambda session: session.execute(text("CREATE TABLE own (n int)")))
    for _ in range(3):
        await server_desk.ask("pay-1")
        await server_desk.do(lambda session: session.execute(text("INSERT INTO own VALUES (1)")))
    await server_desk.do(Session.commit)
    assert server_desk.rows() == 0
    assert await server_desk.scalar("SELECT count(*) FROM own") == 3


async def test_a_claim_that_comes_while_the_caller_goes_on_does_not_wait_for_it(server_desk: Desk) -> None:
    await server_desk.ask("pay-1")
    with server_desk.engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '3s'"))
        assert server_desk.ledger.claim(connection, [claim("pay-1")]).won == {digest("pay-1")}
    assert (await server_desk.ask("pay-1")).state is MessageState.PROCESSED


async def test_settings_locks_and_savepoints_are_as_before(server_desk: Desk) -> None:
    await server_desk.scalar("SELECT set_config('lock_timeout', '7s', true)")
    await server_desk.scalar("SELECT set_config('search_path', 'public', true)")
    await server_desk.ask("pay-0", probe=False)
    locks = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'RowExclusiveLock'"
    with Holder(server_desk, "pay-1"):
        for name in ("pay-1", "pay-2"):
            await server_desk.ask(name)
    assert await server_desk.scalar("SHOW lock_timeout") == "7s"
    assert await server_desk.scalar(locks) == 0
    with pytest.raises(DBAPIError, match="does not exist"):
        await server_desk.scalar("ROLLBACK TO SAVEPOINT consumerkit_holder")


@pytest.mark.parametrize("mode", ["READ ONLY", "ISOLATION LEVEL SERIALIZABLE"])
async def test_a_transaction_that_must_not_write_is_not_made_to(server_desk: Desk, mode: str) -> None:
    with Holder(server_desk, "pay-1"):
        await server_desk.do(lambda session: session.execute(text(f"SET TRANSACTION {mode}")))
        found = await server_desk.ask("pay-1")
        assert (found.state, found.probed) == (MessageState.UNKNOWN, False)
        assert await server_desk.scalar("SELECT pg_current_xact_id_if_assigned()") is None


async def test_a_claim_beyond_the_callers_snapshot_is_in_flight_for_it(server_desk: Desk) -> None:
    await server_desk.do(lambda session: session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")))
    assert (await server_desk.ask("pay-1")).state is MessageState.UNKNOWN
    server_desk.claim("pay-1", Outcome.PROCESSED)
    assert (await server_desk.ask("pay-1")).state is MessageState.IN_FLIGHT
    await server_desk.over()
    assert (await server_desk.ask("pay-1")).state is MessageState.PROCESSED


async def test_a_locked_table_is_not_taken_for_a_message_in_flight(server_desk: Desk) -> None:
    with server_desk.engine.begin() as connection:
        connection.execute(text(f"LOCK TABLE {LEDGER.fullname} IN SHARE MODE"))
        found = await server_desk.ask("pay-1")
        assert (found.state, found.probed) == (MessageState.UNKNOWN, False)


async def test_a_role_that_may_only_read_is_told_what_can_be_read(server_desk: Desk) -> None:
    server_desk.claim("pay-1", Outcome.PROCESSED)
    role = f"reader_{server_desk.engine.url.database}"
    server_desk.execute(text(f"CREATE ROLE {role}"))
    try:
        server_desk.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
        await server_desk.scalar(f"SELECT set_config('role', '{role}', false)")
        assert (await server_desk.ask("pay-1")).state is MessageState.PROCESSED
        found = await server_desk.ask("pay-2")
        assert (found.state, found.probed) == (MessageState.UNKNOWN, False)
        assert await server_desk.scalar("SELECT 1") == 1
        await server_desk.over()
    finally:
        server_desk.execute(text(f"DROP OWNED BY {role}"))
        server_desk.execute(text(f"DROP ROLE {role}"))


async def test_in_autocommit_nothing_is_tried(postgres: PostgresServer, database: str) -> None:
    desk = Desk(postgres.url(database), coroutines=False)
    try:
        with Session(desk.engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
            found = message_status(session, Credit, "pay-1")
            assert (found.state, found.probed) == (MessageState.UNKNOWN, False)
        assert desk.rows() == 0
    finally:
        await desk.close()


async def test_a_question_that_is_cancelled_leaves_no_claim(postgres: PostgresServer, database: str) -> None:
    for driver in ("psycopg", "asyncpg"):
        desk = Desk(postgres.url(database, driver), coroutines=True)
        try:
            for turn in range(30):
                with suppress(TimeoutError):
                    await asyncio.wait_for(desk.ask("pay-1"), 0.0005 * turn)
                with suppress(Exception):
                    await desk.do(Session.commit)
                await desk.over()
            assert desk.rows() == 0
        finally:
            await desk.close()


async def test_sqlite_does_not_show_what_is_in_flight(tmp_path: Path) -> None:
    desk = Desk(f"sqlite:///{tmp_path}/status.sqlite", coroutines=False)
    try:
        found = await desk.ask("pay-1")
        assert (found.state, found.probed) == (MessageState.UNKNOWN, False)
    finally:
        await desk.close()


async def test_the_servers_other_errors_are_raised_and_nothing_stays(postgres: PostgresServer, database: str) -> None:
    desk = Desk(postgres.url(database), coroutines=False)
    refuse = (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$",
        f"CREATE TRIGGER refuse BEFORE INSERT ON {LEDGER.fullname} FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    try:
        with psycopg.connect(postgres.dsn(database), autocommit=True) as connection:
            for statement in refuse:
                connection.execute(statement.encode())
        with pytest.raises(DBAPIError, match="no"):
            await desk.ask("pay-1")
        assert await desk.scalar("SELECT 1") == 1
    finally:
        await desk.close()
