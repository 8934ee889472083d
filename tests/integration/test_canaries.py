"""No secret and no payload leaks: the tests look for canaries wherever a run leaves text.

Each client and each driver is in one of the runs.
"""

import asyncio
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psycopg
import pytest
from confluent_kafka import Consumer, Producer
from pydantic import BaseModel
from sqlalchemy import Text, insert, select
from sqlalchemy import text as sql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typer.testing import CliRunner

from consumerkit import Context, DeadLetter, Handler, Reject, Retry, fixed, header
from consumerkit.cli.main import app
from consumerkit.events import MessageDeadLettered, OutboxHeldBack
from consumerkit.monitoring.monitor import monitored
from consumerkit.storage import schema
from consumerkit.storage.database import Database
from consumerkit.storage.tables import DEFAULT_TABLES as TABLES
from consumerkit.transports.kafka import Kafka, Sasl, Tls
from consumerkit.worker import Worker
from tests.integration.stage import Run
from tests.services import PostgresServer
from tests.services.secure import PASSWORD as KAFKA_PASSWORD
from tests.services.secure import USER, SecureKafka

DATABASE_PASSWORD = "canary-of-the-database"
# Whatever a handler logs, these are removed by their form or by their place.
TOLD = "canary-told-by-the-handler"
ROW = "canary-in-a-row"
PAYLOAD = "canary-in-the-value"
HEADER = "canary-in-a-header"
KEY = "canary-in-the-key"
NUMBER = "canary-in-the-id"
SECRETS = (KAFKA_PASSWORD, DATABASE_PASSWORD, TOLD, ROW)
PAYLOADS = (PAYLOAD, HEADER)


class Base(DeclarativeBase):
    pass


class Once(Base):
    __tablename__ = "once"

    name: Mapped[str] = mapped_column(Text, primary_key=True)


class Order(BaseModel):
    kind: str
    secret: str


class Careless(Handler[Order]):
    """Repeats what it knows in every error it raises."""

    name = "careless"
    message_id = header("id")
    dead_letter: DeadLetter
    retry = Retry(attempts=1, wait=fixed(0))

    def __init__(self, topic: str, url: str) -> None:
        self.topic = topic
        self.dead_letter = DeadLetter(f"{topic}.dlq")
        self.url = url

    async def handle(self, event: Order, context: Context) -> dict[str, str]:
        match event.kind:
            case "reject":
                raise Reject(f"password={TOLD} is refused, Authorization: Bearer {TOLD}")
            case "connect":
                try:
                    # asyncpg refuses to send it, PostgreSQL to read it, and both quote it; SQLite takes it for 0.
                    await context.session.execute(sql("SELECT CAST(:value AS integer)"), {"value": ROW})
                except DBAPIError as error:
                    raise RuntimeError(f"cannot reach {self.url}: {error} {error.orig!r}") from None
                raise RuntimeError(f"cannot reach {self.url}")
            case "twice":
                await context.session.execute(insert(Once).values(name=f"{ROW}-{self.name}"))
            case "publish":
                context.publish("missing", value=event.secret.encode(), key=KEY, headers={"h": HEADER})
            case "wait":
                raise ConnectionRefusedError(f"postgresql://app:{TOLD}@elsewhere/db")
            case _:
                pass
        return {"fine": "yes"}


class Patient(Careless):
    name = "patient"
    retry = Retry(attempts=3, wait=fixed(3600))


@pytest.fixture(scope="module")
def secure() -> Iterator[SecureKafka]:
    with SecureKafka() as server:
        yield server


@pytest.fixture
def role(postgres: PostgresServer) -> Iterator[str]:
    """A role with a password of its own, which the server does not even ask for."""
    name = f"canary_{uuid4().hex[:8]}"
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{DATABASE_PASSWORD}'".encode())
        yield name
        admin.execute(f"DROP ROLE {name}".encode())


def urls_of(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The owner's URL of a database, and the one with a canary as its password."""
    if driver == "sqlite":
        url = f"sqlite:///{tmp_path}/canary.sqlite"
        return url, url
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.url(request.getfixturevalue("database"), driver)
    return url, url.replace("://postgres@", f"://{request.getfixturevalue('role')}:{DATABASE_PASSWORD}@")


KINDS = ("ok", "reject", "connect", "twice", "twice", "publish", "wait", "undecodable", "conflict", "ok")


def send(bootstrap: str, topic: str) -> None:
    """One record of each kind, each with canaries in value, key and header."""
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    for number, kind in enumerate(KINDS):
        value = json.dumps({"kind": kind, "secret": PAYLOAD}) if kind != "undecodable" else f'{{"kind": "{PAYLOAD}'
        number = 0 if kind == "conflict" else number
        headers: list[tuple[str, str | bytes | None]] = [("id", f"{NUMBER}-{number}".encode()), ("h", HEADER.encode())]
        producer.produce(topic, value.encode(), key=f"{KEY}-{number}".encode(), headers=headers, partition=0)
    assert producer.flush(60) == 0


def read(bootstrap: str, topic: str, count: int) -> list[Any]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": topic, "auto.offset.reset": "earliest", "log_level": 0}
    )
    consumer.subscribe([topic])
    found: list[Any] = []
    while len(found) < count:
        if (record := consumer.poll(60)) is not None and record.error() is None:
            found.append(record)
    consumer.close()
    return found


def command(url: str, *words: str) -> str:
    found = CliRunner().invoke(app, [*words], env={"CONSUMERKIT_DATABASE": url})
    assert found.exit_code == 0, (words, found.output, found.exception)
    return found.output


def free_of(text: str, canaries: tuple[str, ...], where: str) -> None:
    for canary in canaries:
        at = text.find(canary)
        assert at < 0, f"{canary} in {where}: {text[max(0, at - 300) : at + 100]}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "client, driver",
    [("confluent", "psycopg"), ("aiokafka", "asyncpg"), ("aiokafka", "psycopg"), ("confluent", "sqlite")],
)
async def test_no_secret_and_no_payload_gets_out(
    secure: SecureKafka,
    client: Literal["confluent", "aiokafka"],
    driver: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (owner, url), topic = urls_of(driver, request, tmp_path), f"canary-{uuid4().hex[:8]}"
    for name in (topic, f"{topic}.dlq"):
        secure.server.create_topic(name)
    await asyncio.to_thread(send, secure.server.bootstrap, topic)
    caplog.set_level(logging.DEBUG)
    # A test in the same process may have configured logging as the command line does, which quiets the clients.
    for name in ("aiokafka", "aiosqlite"):
        caplog.set_level(logging.DEBUG, name)
    database = Database(owner)
    await database.run(schema.apply)
    await database.run(lambda session: Base.metadata.create_all(session.connection()))
    security = Sasl("PLAIN", USER, KAFKA_PASSWORD, Tls(ca_file=secure.certificates / "ca.pem"))
    events: list[Any] = []
    worker = Worker(
        database=url,
        kafka=Kafka(secure.sasl_ssl, security=security, transport=client),
        handlers=[Careless(topic, url), Patient(topic, url)],
        observers=[events.append],
        stall_timeout=600.0,
    )
    stopping = asyncio.Event()
    async with monitored(worker, ("127.0.0.1", 0)) as port:
        run = Run(worker, asyncio.create_task(worker.run(stopping)), stopping, events)
        # Six of one handler; the other one parks half of them.
        await run.until(lambda: len(run.seen(MessageDeadLettered)) >= 9, "the dead letters")
        await run.until(lambda: bool(run.seen(OutboxHeldBack)), "the outbox is held back")
        told = await asyncio.to_thread(pages, port)
        await run.stop()
    letters = await asyncio.to_thread(read, secure.server.bootstrap, f"{topic}.dlq", 9)
    rows = await database.run(stored)
    await database.dispose()
    outputs = await asyncio.to_thread(outputs_of, url)
    seen = "".join(capfd.readouterr())

    # The canaries could have leaked.
    assert PAYLOAD in rows["value"]
    assert HEADER in rows["headers"]
    assert {record.error() for record in letters} == {None}
    assert any(PAYLOAD.encode() in record.value() for record in letters)
    assert {"aiokafka.consumer.group_coordinator" if client == "aiokafka" else "consumerkit"} <= {
        record.name for record in caplog.records
    }

    free_of(caplog.text, SECRETS + PAYLOADS, "the log")
    free_of(seen, SECRETS + PAYLOADS, "standard output and error")
    free_of("\n".join(map(repr, events)), SECRETS + PAYLOADS, "an event")
    free_of(repr(worker.transport) + repr(worker.database) + repr(security), SECRETS, "a repr")
    free_of("\n".join(told), (*SECRETS, *PAYLOADS, KEY, NUMBER), "an answer over HTTP")
    for record in letters:
        for name, value in record.headers():
            free_of(f"{name} {value!r}", SECRETS, "a dead letter's header")
            if name != "h":
                free_of(f"{name} {value!r}", PAYLOADS, f"a dead letter's header {name}")
    for column, text in rows.items():
        free_of(text, SECRETS, f"column {column}")
        if column not in ("value", "headers"):
            free_of(text, PAYLOADS, f"column {column}")
    for words, text in outputs.items():
        free_of(text, SECRETS, words)
        if "--value" not in words and "export" not in words:
            free_of(text, PAYLOADS, words)
    assert any(PAYLOAD in text for words, text in outputs.items() if "--value" in words)


def pages(port: int | None) -> list[str]:
    found = []
    for path in ("/live", "/metrics"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            found.append(answer.read().decode())
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=60).read()
    except urllib.error.HTTPError as error:
        found.append(error.read().decode())
    return found


def stored(session: Any) -> dict[str, str]:
    """Everything in our tables, by column."""
    found: dict[str, list[str]] = {}
    for table in TABLES.metadata.tables.values():
        for row in session.execute(select(table)).mappings():
            for name, value in row.items():
                found.setdefault(name, []).append(repr(value))
    return {name: "\n".join(values) for name, values in found.items()}


def outputs_of(url: str) -> dict[str, str]:
    """What the commands print, by their words."""
    commands = [
        "db stats",
        "db stats --json",
        "dead-letters list",
        "dead-letters list --json",
        "dead-letters groups",
        "dead-letters export",
        "dead-letters show 1",
        "dead-letters show 1 --value",
        "dead-letters show 1 --json",
        "parked list",
        "parked list --json",
        "parked groups",
        "parked show 1",
        f"message status careless {NUMBER}-0",
        "outbox list",
        *(["grants --worker app"] if url.startswith("postgresql") else []),
    ]
    return {words: command(url, *words.split()) for words in commands}
