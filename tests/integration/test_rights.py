"""The rights that a worker needs: printed, granted as printed, and checked at the start."""

import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url

from consumerkit import ConfigurationError, Reject, StartError
from consumerkit.events import GroupCommitted, MessageDeadLettered, Trouble
from consumerkit.redrive import redrive
from consumerkit.storage import postgresql_engine, schema, server
from consumerkit.storage.database import Database
from consumerkit.storage.dead_letters.selection import Selection
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.memory import MemoryBroker
from tests.integration.memory_stage import TOPIC, MemoryStage, Write
from tests.services import PostgresServer

pytestmark = pytest.mark.every_variant

HERE = DEFAULT_TABLES.within("public")


class Roles:
    """A database whose tables belong to a migrator, with a worker and a reader that have what is printed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.names = {kind: f"{kind}_{uuid4().hex[:8]}" for kind in ("worker", "reader", "migrator")}
        self.admin = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        for name in self.names.values():
            self.admin.execute(f"CREATE ROLE {name} LOGIN".encode())
        self.admin.execute(b"REVOKE ALL ON SCHEMA public FROM PUBLIC")
        self.grants = server.grants(HERE, **self.names)

    def url_of(self, kind: str, driver: str = "psycopg") -> str:
        url = make_url(self.url).set(username=self.names[kind], drivername=f"postgresql+{driver}")
        return url.render_as_string(hide_password=False)

    def execute(self, kind: str, statement: str) -> None:
        with psycopg.connect(self.url_of(kind).replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(statement.encode())

    def close(self) -> None:
        for name in self.names.values():
            self.admin.execute(f"DROP OWNED BY {name} CASCADE".encode())
            self.admin.execute(f"DROP ROLE {name}".encode())
        self.admin.execute(b"GRANT ALL ON SCHEMA public TO PUBLIC")
        self.admin.close()


@pytest.fixture
async def roles(postgres: PostgresServer, database: str) -> AsyncIterator[Roles]:
    made = Roles(postgres.url(database))
    made.admin.execute(made.grants[0].encode())
    migrator = Database(made.url_of("migrator"))
    await migrator.run(schema.apply)
    await migrator.dispose()
    for statement in made.grants[1:]:
        made.admin.execute(statement.encode())
    yield made
    made.close()


@pytest.fixture
async def place(roles: Roles) -> AsyncIterator[MemoryStage]:
    """What the handlers write is theirs; ours is the migrator's."""
    made = MemoryStage(roles.url)
    made.broker = MemoryBroker(topics={TOPIC: 2, "out": 1})
    await made.create_tables()
    roles.admin.execute(f"GRANT ALL ON lines, lines_sequence_seq TO {roles.names['worker']}".encode())
    yield made
    await made.close()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_worker_runs_under_exactly_what_is_printed(roles: Roles, place: MemoryStage, driver: str) -> None:
    """Claims, results, parks, dead-letters, publishes, marks, forgets and redrives."""
    failing = {"2"}

    async def before(context: Any) -> None:
        context.publish("out", value=b"1")
        if context.message_id in failing:
            raise Reject("as asked")
        if context.message_id == "3" and context.attempt < 3:
            raise ValueError("again")

    place.given = None
    for number in range(5):
        place.append(number, key=b"%d" % number)
    url = roles.url_of("worker", driver)
    async with place.run(Write(before), database=url, retention=1.0) as run:
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "the dead letter")
        await place.until_written(run, 4)
        failing.clear()
        report = await redrive(url, Selection(), by="test")
        assert report.redriven == 1
        await place.until_written(run, 5)
        await run.until(lambda: len(place.broker.records("out")) >= 5, "the outbox")
        assert not run.seen(Trouble)


@pytest.mark.parametrize("kind", ["worker", "reader"])
@pytest.mark.parametrize("verb", ["UPDATE {table} SET actor = 'another'", "DELETE FROM {table}", "TRUNCATE {table}"])
async def test_nobody_alters_what_was_recorded(roles: Roles, kind: str, verb: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.execute(kind, verb.format(table="public.consumerkit_operator_actions"))


async def test_a_reader_only_reads(roles: Roles) -> None:
    for table in HERE.metadata.tables.values():
        roles.execute("reader", f"SELECT * FROM public.{table.name}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            roles.execute("reader", f"DELETE FROM public.{table.name}")


LACKS = {
    "a sequence": ("USAGE ON SEQUENCE public.consumerkit_dead_letters_id_seq", "USAGE on sequence"),
    "a table": ("DELETE ON public.consumerkit_parked_messages", "DELETE on public.consumerkit_parked_messages"),
    "the record": ("INSERT ON public.consumerkit_operator_actions", "INSERT on public.consumerkit_operator_actions"),
}


@pytest.mark.parametrize("what", LACKS)
async def test_a_right_that_is_missing_is_told_at_the_start(roles: Roles, place: MemoryStage, what: str) -> None:
    revoked, told = LACKS[what]
    roles.admin.execute(f"REVOKE {revoked} FROM {roles.names['worker']}".encode())
    worker = place.make(Write(), database=roles.url_of("worker"))
    with pytest.raises(StartError) as caught:
        await worker.start()
    assert "\n" not in str(caught.value)
    assert f"the role {roles.names['worker']} lacks {told}" in str(caught.value)
    assert "consumerkit grants" in str(caught.value)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_login_that_is_refused_for_a_while_is_waited_for(roles: Roles, place: MemoryStage, driver: str) -> None:
    """As while a password is rotated: 28000 and 28P01 are of one class, and stop no worker that has started."""
    name = roles.names["worker"]
    place.append(1)
    async with place.run(Write(), database=roles.url_of("worker", driver)) as run:
        await place.until_written(run, 1)
        roles.admin.execute(f"ALTER ROLE {name} NOLOGIN".encode())
        roles.admin.execute(b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [name])
        place.append(2)
        # psycopg has the server's text and no code; asyncpg has the code.
        told = re.compile("is not permitted to log in|28000")
        await run.until(lambda: any(told.search(one.error) for one in run.seen(Trouble)), "a refusal")
        roles.admin.execute(f"ALTER ROLE {name} LOGIN".encode())
        await place.until_written(run, 2)
        assert not run.seen(MessageDeadLettered)


@pytest.fixture
def latin(postgres: PostgresServer) -> Iterator[str]:
    name = f"latin_{uuid4().hex[:8]}"
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'".encode())
        yield postgres.url(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_a_database_that_cannot_hold_every_text_is_refused(latin: str) -> None:
    place = MemoryStage(latin)
    await place.create_tables()
    with pytest.raises(StartError) as caught:
        await place.make(Write()).start()
    assert str(caught.value).startswith("database: its encoding is LATIN1, which cannot hold every message ID")
    await place.close()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_dates_and_text_are_read_whatever_the_database_says(
    postgres: PostgresServer, database: str, driver: str
) -> None:
    first = MemoryStage(postgres.url(database))
    await first.create_tables()
    await first.close()
    with psycopg.connect(postgres.dsn(database), autocommit=True) as admin:
        for setting in ("datestyle TO 'SQL, DMY'", "client_encoding TO 'LATIN1'"):
            admin.execute(f"ALTER DATABASE {database} SET {setting}".encode())
    place = MemoryStage(postgres.url(database).replace("+psycopg", f"+{driver}"))

    async def before(context: Any) -> None:
        if context.attempt < 3:
            raise ValueError("деньги")

    place.append(1)
    async with place.run(Write(before)) as run:
        await run.until(lambda: bool(run.seen(GroupCommitted)), "the message after its retries")
        await place.until_written(run, 1)
    await place.close()


# The URL.


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-full"])
async def test_sslmode_means_the_same_with_both_drivers(
    postgres: PostgresServer, database: str, driver: str, mode: str
) -> None:
    """The tests' server speaks no TLS: what wants it is refused in one line."""
    url = f"{postgres.url(database)}?sslmode={mode}&application_name=shop&connect_timeout=5"
    place = MemoryStage(url.replace("+psycopg", f"+{driver}"))
    if mode in ("disable", "prefer"):
        await place.create_tables()
    else:
        with pytest.raises(StartError) as caught:
            await place.make(Write()).start()
        assert "\n" not in str(caught.value)
        assert "SSL" in str(caught.value) or "certificate" in str(caught.value)
    await place.close()


WARNED = {
    "postgresql+psycopg://u:secret@db.bank.example/x": True,
    "postgresql+asyncpg://u:secret@10.0.0.7/x?sslmode=require": True,
    "postgresql://u:secret@/x?host=db1.bank.example:5432&host=localhost": True,
    "postgresql+psycopg://u:secret@db.bank.example/x?sslmode=verify-full": False,
    "postgresql+psycopg://u:secret@localhost/x": False,
    "postgresql+asyncpg://u:secret@127.0.0.1/x": False,
    "postgresql+psycopg://u:secret@[::1]/x": False,
    "postgresql+psycopg://u:secret@localhost/x?hostaddr=203.0.113.5": True,
    "postgresql+psycopg://u:secret@/x?host=/run/postgresql": False,
    "postgresql+psycopg:///x": False,
    "postgresql+psycopg://u:secret@/x?service=bank": True,
    "postgresql+psycopg://u:secret@/x?service=verified": False,
    "postgresql+psycopg://u:secret@/x?service=bank&sslmode=verify-full": False,
    "postgresql+psycopg://u:secret@/x?service=local": False,
    "postgresql+psycopg://u:secret@/x?service=secret-unknown": True,
    "postgresql+psycopg://u:secret@db.bank.example/x?service=local": True,
    "postgresql+psycopg://u:secret@db.bank.example/x?sslrootcert=system": False,
    "postgresql+asyncpg://u:secret@db.bank.example/x?ssl=verify-full": False,
    "postgresql+asyncpg://u:secret@/x?host=localhost,db.bank.example": True,
}
SERVICES = """[bank]
host=db2.bank.example
sslmode=require
[verified]
host=db3.bank.example
sslmode=verify-full
[local]
host=/run/postgresql
"""


@pytest.mark.parametrize("url", WARNED)
def test_a_connection_over_a_network_without_verification_is_warned_of_once(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "services").write_text(SERVICES)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setattr(postgresql_engine, "_warned", set())
    monkeypatch.delenv("PGHOST", raising=False)
    monkeypatch.delenv("PGHOSTADDR", raising=False)
    monkeypatch.delenv("PGSSLMODE", raising=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            postgresql_engine.check_surroundings(make_url(url))
    assert len(caplog.records) == WARNED[url]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("query, told", [("keepalives_idle=3", "no 'keepalives_idle' in a URL"), ("hunter2=1", "")])
def test_what_asyncpg_does_not_know_is_refused_without_quoting_what_may_be_a_secret(query: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Database(f"postgresql+asyncpg://u@localhost/x?{query}")
    assert str(caught.value).startswith("database: asyncpg knows")
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)
