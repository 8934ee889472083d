"""Whose fault each error is: a test for each row of `consumerkit.storage.faults`, against real servers and drivers."""

import os
import signal
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from consumerkit.storage import faults
from consumerkit.storage.faults import Fault, fault_of, sqlstate
from tests.contracts import faults_table, venues
from tests.contracts.database_client import DatabaseClient, Venue
from tests.contracts.faults_table import ROWS, Scene
from tests.crash.model import Base, Effect
from tests.services import PostgresServer

DRIVERS = {"psycopg": ("psycopg", False), "psycopg-async": ("psycopg", True), "asyncpg": ("asyncpg", True)}


@pytest.fixture(scope="module", params=DRIVERS)
def venue(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[Venue]:
    driver, coroutines = DRIVERS[request.param]
    yield from venues.postgresql(postgres, driver, coroutines=coroutines)


@pytest.fixture
def scene(venue: Venue, postgres: PostgresServer) -> Iterator[Scene]:
    assert venue.url.database is not None
    with venue.client() as client, venue.client() as other:
        yield Scene(client, other, postgres.dsn(venue.url.database))


def _caught(work: Callable[[], object]) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_table(scene: Scene, name: str) -> None:
    row = ROWS[name]
    error = _caught(lambda: row.provoke(scene))
    assert isinstance(error, DBAPIError)
    assert sqlstate(error) in (row.state, *row.other_states)
    assert {fault_of(error, in_handler=True), fault_of(error, in_handler=False)} == {row.fault}


def test_each_row_of_the_code_is_tested() -> None:
    states = {row.state for row in ROWS.values()}
    assert set(faults._BY_STATE) <= states
    assert set(faults._BY_CLASS) <= {state[:2] for state in states}


def test_a_lost_connection_that_the_handler_swallowed_is_still_lost(scene: Scene) -> None:
    error = _caught(lambda: faults_table.connection_lost_and_swallowed(scene))
    assert isinstance(error, PendingRollbackError)
    assert fault_of(error, in_handler=True) is Fault.CONNECTION


def test_a_failed_flush_that_the_handler_swallowed_is_its_own(scene: Scene) -> None:
    def work(session: Session) -> None:
        Base.metadata.create_all(session.connection())
        session.add(Effect(partition=0, offset=0, account="a", amount=1, pid=1))
        with suppress(IntegrityError):
            session.flush()
        session.execute(text("SELECT 1"))

    error = _caught(lambda: scene.client.do(work))
    assert isinstance(error, PendingRollbackError)
    assert fault_of(error, in_handler=True) is Fault.HANDLER


def test_what_a_handler_makes_of_an_error_keeps_its_cause(scene: Scene) -> None:
    def work(session: Session) -> None:
        try:
            session.execute(text("SELECT * FROM nowhere"))
        except DBAPIError as error:
            raise LookupError("no account") from error

    assert fault_of(_caught(lambda: scene.client.do(work)), in_handler=True) is Fault.DEPLOY


def test_an_error_raised_from_none_is_the_handlers(scene: Scene) -> None:
    def work(session: Session) -> None:
        try:
            session.execute(text("SELECT * FROM nowhere"))
        except DBAPIError:
            raise LookupError("no account") from None

    assert fault_of(_caught(lambda: scene.client.do(work)), in_handler=True) is Fault.HANDLER


# While connecting. libpq hands on no SQLSTATE there, so with psycopg all of it is waited for.


@pytest.fixture
def limited_role(postgres: PostgresServer) -> Iterator[str]:
    name = f"ck_{uuid4().hex[:12]}"
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 0".encode())
        yield name
        connection.execute(f"DROP ROLE {name}".encode())


def _on_connecting(venue: Venue, url: URL) -> Exception:
    with venue.client(url) as client:
        return _caught(lambda: client.execute("SELECT 1"))


@pytest.mark.parametrize("change", [{"port": 1}, {"host": "nowhere.invalid"}], ids=["refused", "unknown-host"])
def test_a_server_out_of_reach_is_waited_for(venue: Venue, change: dict[str, Any]) -> None:
    error = _on_connecting(venue, venue.url.set(**change))
    assert fault_of(error, in_handler=False) is Fault.CONNECTION


def test_a_server_that_takes_no_more_connections_is_waited_for(venue: Venue, limited_role: str) -> None:
    error = _on_connecting(venue, venue.url.set(username=limited_role))
    assert "too many connections" in str(error)
    assert fault_of(error, in_handler=False) is Fault.CONNECTION


@pytest.mark.parametrize("change", [{"database": "nowhere"}, {"username": "nobody_here"}])
def test_a_wrong_way_in_is_never_a_messages_fault(venue: Venue, change: dict[str, Any]) -> None:
    # After a successful start: a password that is rotated, a database that is restored. The start itself refuses.
    error = _on_connecting(venue, venue.url.set(**change))
    assert fault_of(error, in_handler=False) is Fault.CONNECTION


def test_a_pool_without_a_free_connection_is_full(venue: Venue) -> None:
    make = create_async_engine if venue.coroutines else create_engine
    engine = make(venue.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    client = DatabaseClient(engine, coroutines=venue.coroutines)
    try:

        def work(session: Session) -> None:
            session.connection()
            with Session(session.get_bind()) as second:
                second.connection()

        error = _caught(lambda: client.do(work))
        assert isinstance(error, PoolTimeout)
        assert fault_of(error, in_handler=True) is Fault.CAPACITY
    finally:
        client.close(engine)


# A server that shuts down.


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    with PostgresServer.start_private(durable=False) as server:
        yield server


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_server_that_goes_and_comes_is_waited_for(own_server: PostgresServer, driver: str) -> None:
    name, coroutines = DRIVERS[driver]
    venue = Venue(make_url(own_server.url("postgres", name)), coroutines=coroutines)
    with venue.client() as client, venue.client() as bystander:
        # One session crashes, and the server ends all others.
        bystander.pid()
        os.kill(client.pid(), signal.SIGKILL)
        time.sleep(0.5)
        for one in (client, bystander):
            error = _caught(lambda one=one: one.execute("SELECT 1"))  # type: ignore[misc]
            assert fault_of(error, in_handler=True) is Fault.CONNECTION
            one.rollback()
        _wait_for(lambda: client.scalar("SELECT 1") == 1, client)
        own_server.stop("fast")
        error = _caught(lambda: client.execute("SELECT 1"))
        assert fault_of(error, in_handler=True) is Fault.CONNECTION
        client.rollback()
        error = _caught(lambda: client.execute("SELECT 1"))
        assert fault_of(error, in_handler=False) is Fault.CONNECTION
        client.rollback()
        own_server.start()
        assert client.scalar("SELECT 1") == 1


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_server_that_asks_for_a_password_tells_a_wrong_one(own_server: PostgresServer, driver: str) -> None:
    name, coroutines = DRIVERS[driver]
    with psycopg.connect(own_server.admin_dsn, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS guarded")
        connection.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
        found = connection.execute("SHOW hba_file").fetchone()
        assert found is not None
        hba = Path(found[0])
        before = hba.read_text()
        hba.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + before)
        connection.execute("SELECT pg_reload_conf()")
        try:
            venue = Venue(make_url(own_server.url("postgres", name)), coroutines=coroutines)
            wrong = venue.url.set(username="guarded", password="wrong")
            _wait_for(lambda: "guarded" in str(_on_connecting(venue, wrong)), None)
            error = _on_connecting(venue, wrong)
            assert "wrong" not in str(error)
            assert fault_of(error, in_handler=False) is Fault.CONNECTION
        finally:
            hba.write_text(before)
            connection.execute("SELECT pg_reload_conf()")


def _wait_for(condition: Callable[[], bool], client: DatabaseClient | None) -> None:
    until = time.monotonic() + 120
    while True:
        with suppress(Exception):
            if condition():
                return
        if client is not None:
            client.rollback()
        assert time.monotonic() < until
        time.sleep(0.1)


# What is no database error.


@pytest.mark.parametrize("error", [ConnectionResetError(), TimeoutError(), OSError(5, "I/O")])
def test_a_failing_socket_is_the_databases_only_outside_of_the_handler(error: Exception) -> None:
    assert fault_of(error, in_handler=False) is Fault.CONNECTION
    assert fault_of(error, in_handler=True) is Fault.HANDLER


@pytest.mark.parametrize("error", [ValueError(), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), KeyError("x")])
def test_any_other_error_is_the_handlers(error: Exception) -> None:
    assert fault_of(error, in_handler=False) is Fault.HANDLER


def test_a_circle_of_causes_comes_to_an_end() -> None:
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one
    assert fault_of(one, in_handler=True) is Fault.HANDLER


# SQLite.


@pytest.fixture(params=["pysqlite", "aiosqlite"])
def file_venue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Venue]:
    yield from venues.sqlite(tmp_path, coroutines=request.param == "aiosqlite")


@pytest.mark.parametrize(
    "statement, fault",
    [
        ("SELECT * FROM nowhere", Fault.DEPLOY),
        ("SELECT absent FROM consumerkit_consumers", Fault.DEPLOY),
        ("INSERT INTO consumerkit_consumers (absent) VALUES (1)", Fault.DEPLOY),
        ("SELECT absent()", Fault.DEPLOY),
        ("SELEC 1", Fault.DEPLOY),
        ("INSERT INTO consumerkit_consumers (id) VALUES (1)", Fault.HANDLER),
        ("SELECT json_extract('x', '$')", Fault.HANDLER),
        ("SELECT abs(-9223372036854775807 - 1)", Fault.HANDLER),
    ],
)
def test_sqlite_statements(file_venue: Venue, statement: str, fault: Fault) -> None:
    with file_venue.client() as client:
        error = _caught(lambda: client.execute(statement))
        assert isinstance(error, DBAPIError)
        assert fault_of(error, in_handler=True) is fault


def test_a_busy_sqlite_is_in_conflict(file_venue: Venue) -> None:
    with file_venue.client() as client, file_venue.client() as other:
        other.execute("PRAGMA busy_timeout = 50")
        other.rollback()
        client.execute("SELECT 1")
        error = _caught(lambda: other.execute("SELECT 1"))
        assert fault_of(error, in_handler=False) is Fault.CONFLICT
        client.rollback()


def test_a_full_sqlite_is_full(file_venue: Venue) -> None:
    with file_venue.client() as client:
        client.execute("CREATE TABLE large (t TEXT)")
        client.commit()
        client.execute("PRAGMA max_page_count = 1")
        error = _caught(lambda: client.execute("INSERT INTO large VALUES (zeroblob(1000000))"))
        assert fault_of(error, in_handler=True) is Fault.CAPACITY


def test_a_read_only_sqlite_is_waited_for(file_venue: Venue) -> None:
    with file_venue.client() as client:
        client.execute("PRAGMA query_only = 1")
        error = _caught(lambda: client.execute("DELETE FROM consumerkit_consumers"))
        assert fault_of(error, in_handler=True) is Fault.CONNECTION
        client.rollback()


def test_a_sqlite_that_cannot_be_opened_is_waited_for(file_venue: Venue, tmp_path: Path) -> None:
    with file_venue.client(file_venue.url.set(database=f"{tmp_path}/no/such/directory.sqlite")) as client:
        error = _caught(lambda: client.execute("SELECT 1"))
        assert fault_of(error, in_handler=False) is Fault.CONNECTION


def test_a_file_that_is_no_sqlite_needs_somebody_to_act(file_venue: Venue, tmp_path: Path) -> None:
    other_file = tmp_path / "letter.txt"
    other_file.write_bytes(b"not a database" * 1000)
    other_file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    with file_venue.client(file_venue.url.set(database=str(other_file))) as client:
        error = _caught(lambda: client.execute("SELECT 1"))
        assert fault_of(error, in_handler=False) is Fault.DEPLOY


@pytest.mark.parametrize(
    "code, fault",
    [
        (sqlite3.SQLITE_LOCKED, Fault.CONFLICT),
        (sqlite3.SQLITE_IOERR, Fault.CAPACITY),
        (sqlite3.SQLITE_IOERR | 10 << 8, Fault.CAPACITY),
        (sqlite3.SQLITE_NOMEM, Fault.CAPACITY),
        (sqlite3.SQLITE_CONSTRAINT, Fault.HANDLER),
        (None, Fault.HANDLER),
    ],
)
def test_sqlite_codes_that_a_sound_machine_does_not_give(code: int | None, fault: Fault) -> None:
    raised = sqlite3.OperationalError("as the library would say")
    if code is not None:
        raised.sqlite_errorcode = code
    assert fault_of(DBAPIError("SELECT 1", None, raised), in_handler=True) is fault
