"""Ways to make a real PostgreSQL raise each error, and whose fault it is; one row for each in
`consumerkit.storage.faults`, and for what that table leaves to the handler."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from consumerkit.storage.faults import Fault
from tests.contracts.database_client import DatabaseClient


class Scene(NamedTuple):
    """Where an error is provoked.

    Attributes:
        client: The client that meets it.
        other: Another one, to stand in its way.
        dsn: A way in for the administrator, past SQLAlchemy.
    """

    client: DatabaseClient
    other: DatabaseClient
    dsn: str

    def behind_its_back(self, statement: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(statement.encode())


Provoke = Callable[[Scene], object]


class Row(NamedTuple):
    """One way for a statement to fail.

    Attributes:
        state: The SQLSTATE that tells it.
        fault: Whose fault it is.
        provoke: Has the client fail with it.
        other_states: How a driver tells the same that does not hand the server's SQLSTATE on.
    """

    state: str
    fault: Fault
    provoke: Provoke
    other_states: tuple[str | None, ...] = ()


def sql(*statements: str, **parameters: Any) -> Provoke:
    """Statements in one transaction; the last one fails."""

    def provoke(scene: Scene) -> None:
        *before, last = statements
        for statement in before:
            scene.client.execute(statement)
        scene.client.execute(last, **parameters)

    return provoke


class Refusal(Exception):
    """A driver's error with nothing but its SQLSTATE."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.sqlstate = state


def said(state: str) -> Provoke:
    """An error that the server raises only when something is damaged."""

    def provoke(scene: Scene) -> None:
        raise DBAPIError("SELECT 1", None, Refusal(state))

    return provoke


def raised(state: str) -> Provoke:
    """Code in the database raises the error: a trigger or a procedure."""
    return sql(f"DO $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = '{state}'; END $$")


def terminated(scene: Scene) -> None:
    scene.behind_its_back(f"SELECT pg_terminate_backend({scene.client.pid()})")
    time.sleep(0.1)
    scene.client.execute("SELECT 1")


def left_idle(scene: Scene) -> None:
    scene.client.execute("SET LOCAL idle_in_transaction_session_timeout = 30")
    time.sleep(0.3)
    scene.client.execute("SELECT 1")


def left_alone(scene: Scene) -> None:
    scene.client.execute("SET idle_session_timeout = 30")
    scene.client.commit()
    time.sleep(0.3)
    scene.client.execute("SELECT 1")


def serialized(scene: Scene) -> None:
    scene.client.execute("CREATE TABLE sums (n int)")
    scene.client.execute("INSERT INTO sums VALUES (1), (2)")
    scene.client.commit()
    try:
        for client in (scene.client, scene.other):
            client.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            client.execute("SELECT * FROM sums")
        scene.other.execute("UPDATE sums SET n = n + 1")
        scene.other.commit()
        scene.client.execute("UPDATE sums SET n = n + 1")
    finally:
        scene.client.rollback()
        scene.other.rollback()
        scene.client.execute("DROP TABLE sums")
        scene.client.commit()


def deadlocked(scene: Scene) -> None:
    for client, lock in ((scene.client, 1), (scene.other, 2)):
        # The transaction that detects the deadlock is rolled back.
        client.execute(f"SET LOCAL deadlock_timeout = {'50' if client is scene.client else '20000'}")
        client.execute(f"SELECT pg_advisory_xact_lock(7411, {lock})")
    waiting = scene.other.start(lambda session: session.execute(text("SELECT pg_advisory_xact_lock(7411, 1)")))
    try:
        time.sleep(0.1)
        scene.client.execute("SELECT pg_advisory_xact_lock(7411, 2)")
    finally:
        scene.client.rollback()
        waiting.exception(20)
        scene.other.rollback()


def locked_out(scene: Scene) -> None:
    scene.other.execute("SELECT pg_advisory_xact_lock(7412, 1)")
    try:
        scene.client.execute("SET LOCAL lock_timeout = 30")
        scene.client.execute("SELECT pg_advisory_xact_lock(7412, 1)")
    finally:
        scene.other.rollback()


def replanned(scene: Scene) -> None:
    """A table is altered under a statement that the driver has prepared."""
    scene.client.execute("CREATE TABLE altered (n int)")
    scene.client.commit()
    try:
        for _ in range(8):
            scene.client.execute("SELECT * FROM altered WHERE n > :n", n=1)
            scene.client.commit()
        scene.behind_its_back("ALTER TABLE altered ADD COLUMN more int")
        scene.client.execute("SELECT * FROM altered WHERE n > :n", n=1)
    finally:
        scene.client.rollback()
        scene.behind_its_back("DROP TABLE altered")


def aborted(scene: Scene) -> None:
    """The handler swallowed an error."""

    def work(session: Session) -> None:
        try:
            session.execute(text("SELECT 1/0"))
        except Exception:
            session.execute(text("SELECT 1"))

    scene.client.do(work)


def connection_lost_and_swallowed(scene: Scene) -> None:
    pid = scene.client.pid()

    def work(session: Session) -> None:
        scene.behind_its_back(f"SELECT pg_terminate_backend({pid})")
        time.sleep(0.1)
        with suppress(DBAPIError):
            session.execute(text("SELECT 1"))
        session.execute(text("SELECT 1"))

    scene.client.do(work)


TABLE = "CREATE TEMP TABLE limited (n int PRIMARY KEY CHECK (n > 0), t varchar(2), parent int REFERENCES limited)"
C, X, F, D, H = Fault.CONNECTION, Fault.CONFLICT, Fault.CAPACITY, Fault.DEPLOY, Fault.HANDLER
P = Fault.PRESENT

ROWS = {
    # The connection is gone, or is not to the primary.
    "terminated": Row("57P01", C, terminated, ("08003", None)),
    "left idle in its transaction": Row("25P03", C, left_idle, ("08003", None)),
    "left idle": Row("57P05", C, left_alone, ("08003", None)),
    "read-only": Row("25006", C, sql("SET TRANSACTION READ ONLY", "CREATE TABLE written (n int)")),
    "crash of the server": Row("57P02", C, said("57P02")),
    "server not ready": Row("57P03", C, said("57P03")),
    "connection failure": Row("08006", C, said("08006")),
    "too many connections": Row("53300", C, said("53300")),
    "statement not prepared here": Row("26000", C, sql("EXECUTE prepared_elsewhere")),
    "table altered under a statement": Row("0A000", C, replanned),
    # Another transaction was in the way.
    "serialization failure": Row("40001", X, serialized),
    "deadlock": Row("40P01", X, deadlocked),
    "lock timeout": Row("55P03", X, locked_out),
    "lock not waited for": Row("55P03", X, said("55P03")),
    # The server is full or overloaded.
    "statement timeout": Row("57014", F, sql("SET LOCAL statement_timeout = 30", "SELECT pg_sleep(20)")),
    "disk full": Row("53100", F, said("53100")),
    "out of memory": Row("53200", F, said("53200")),
    "system error": Row("58000", F, said("58000")),
    "I/O error": Row("58030", F, said("58030")),
    "data corrupted": Row("XX001", F, said("XX001")),
    "index corrupted": Row("XX002", F, said("XX002")),
    # A person must act.
    "table missing": Row("42P01", D, sql("SELECT * FROM nowhere")),
    "column missing": Row("42703", D, sql("SELECT absent FROM pg_class")),
    "function missing": Row("42883", D, sql("SELECT absent()")),
    "type missing": Row("42704", D, sql("SELECT CAST('' AS absent)")),
    "schema missing": Row("3F000", D, sql("CREATE TABLE nowhere.t (n int)")),
    "right missing": Row("42501", D, sql("SET LOCAL ROLE pg_monitor", "SELECT * FROM consumerkit_consumers")),
    "statement unreadable": Row("42601", D, sql("SELEC 1")),
    # Made before in the transaction, or left on the connection.
    "cursor there": Row("42P03", P, sql(*2 * ["DECLARE a CURSOR FOR SELECT 1"])),
    "statement prepared there": Row("42P05", P, sql(*2 * ["PREPARE a AS SELECT 1"])),
    "schema there": Row("42P06", P, sql(*2 * ["CREATE SCHEMA a"])),
    "table there": Row("42P07", P, sql(*2 * ["CREATE TEMP TABLE a (n int)"])),
    "type there": Row("42710", P, sql(*2 * ["CREATE TYPE pg_temp.a AS ENUM ('b')"])),
    "function there": Row("42723", P, sql(*2 * ["CREATE FUNCTION pg_temp.a() RETURNS int LANGUAGE sql AS 'SELECT 1'"])),
    # A backup is restored under a running worker; a database that never was there is found at the start.
    "database missing": Row("3D000", C, said("3D000")),
    # The handler's own.
    "authorisation refused, by code": Row("28000", H, raised("28000")),
    "password wrong, by code": Row("28P01", H, raised("28P01")),
    "crash, by code": Row("57P02", H, raised("57P02")),
    "disk full, by code": Row("53100", H, raised("53100")),
    "connection failure, by code": Row("08006", H, raised("08006")),
    "serialization failure, by code": Row("40001", H, raised("40001")),
    "statement cancelled, by code": Row("57014", H, raised("57014")),
    "right missing, by code": Row("42501", H, raised("42501")),
    "refused by a policy": Row(
        "42501",
        H,
        sql(
            "CREATE TABLE guarded (n int)",
            "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY",
            "GRANT ALL ON guarded TO pg_monitor",
            "SET LOCAL ROLE pg_monitor",
            "INSERT INTO guarded VALUES (1)",
        ),
    ),
    "unique": Row("23505", H, sql(TABLE, "INSERT INTO limited VALUES (1), (1)")),
    "foreign key": Row("23503", H, sql(TABLE, "INSERT INTO limited VALUES (1, '', 7)")),
    "check": Row("23514", H, sql(TABLE, "INSERT INTO limited VALUES (0)")),
    "not null": Row("23502", H, sql(TABLE, "INSERT INTO limited VALUES (NULL)")),
    "text too long": Row("22001", H, sql(TABLE, "INSERT INTO limited VALUES (1, 'abc')")),
    "number too large": Row("22003", H, sql("SELECT CAST(CAST(:n AS text) AS int)", n="99999999999")),
    "division by zero": Row("22012", H, sql("SELECT 1 / 0")),
    "text is no number": Row("22P02", H, sql("SELECT CAST(CAST(:n AS text) AS int)", n="x")),
    "text is no date": Row("22007", H, sql("SELECT CAST(CAST(:d AS text) AS date)", d="x")),
    "NUL in a text": Row("22021", H, sql("SELECT CAST(:t AS text)", t="a\x00b"), (None,)),
    "types that do not fit": Row("42804", H, sql("SELECT CASE WHEN true THEN 1 ELSE ARRAY[1] END")),
    "no cast": Row("42846", H, sql("SELECT CAST(CAST(1 AS int) AS date)")),
    "text is no tsquery": Row("42601", H, sql("SELECT to_tsquery(:q)", q="a b")),
    "text is no jsonpath": Row("42601", H, sql("SELECT CAST(CAST(:q AS text) AS jsonpath)", q="$.[")),
    "too much at once": Row("54000", H, sql("SELECT repeat('x', 1073741824)")),
    "feature missing": Row("0A000", H, sql("SELECT count(DISTINCT n) OVER () FROM generate_series(1, 2) AS n")),
    "raised by a trigger": Row("P0001", H, sql("DO $$ BEGIN RAISE EXCEPTION 'no'; END $$")),
    "no row for a trigger": Row(
        "P0002", H, sql("DO $$ DECLARE n int; BEGIN SELECT 1 INTO STRICT n WHERE false; END $$")
    ),
    "internal error": Row("XX000", H, raised("XX000")),
    "not within a transaction": Row("25001", H, sql("VACUUM")),
    "transaction aborted": Row("25P02", H, aborted),
}
