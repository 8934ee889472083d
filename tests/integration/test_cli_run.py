"""`consumerkit run` as processes, on a real broker and database."""

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Producer

from consumerkit.storage import schema
from consumerkit.storage.database import Database
from tests.services import KafkaServer, PostgresServer

pytestmark = pytest.mark.calm

APP = """
import os, time
from contextlib import asynccontextmanager
from sqlalchemy import text
from sqlalchemy.orm import Session
from consumerkit import Context, Handler, header
from consumerkit.transports.kafka import Kafka
from consumerkit.worker import Worker

class Record(Handler[bytes]):
    name = "record"
    topic = {topic!r}
    group = {topic!r} + ".record"  # a test's own: members that were killed stay in a group for the session's time
    message_id = header("message-id")
    async def handle(self, event: bytes, context: Context) -> None:
        await context.session.execute(text("INSERT INTO seen VALUES (:id, :pid)"),
                                      {{"id": context.message_id, "pid": os.getpid()}})

class Hang(Record):
    name = "hang"
    group = {topic!r} + ".hang"
    def handle(self, event: bytes, context: Context[Session]) -> None:
        context.session.execute(text("SELECT 1"))
        open("hanging", "w").close()
        time.sleep(600)

def made(*handlers, **options):
    # Who waits for a session to run out waits for longer than any test.
    transport = os.environ.get("SHOP_TRANSPORT", "confluent")
    session = "session.timeout.ms" if transport == "confluent" else "session_timeout_ms"
    kafka = Kafka({bootstrap!r}, transport=transport, options={{session: 1_200_000}})
    return Worker(database={url!r}, kafka=kafka, handlers=handlers, **options)

@asynccontextmanager
async def record():
    open("opened", "a").write("x")
    yield made(Record())
    open("closed", "a").write("x")

def hang_patiently():
    return made(Hang(), grace=60.0)

def missing():
    handler = Record()
    handler.topic = {topic!r} + ".missing"
    return made(handler)

async def broken():
    raise RuntimeError("no secret store")
"""

SLOW = """
import time
from consumerkit import Handler, Worker, header
from consumerkit.transports.memory import Memory, MemoryBroker

class Greet(Handler[bytes]):
    name = "greet"
    topic = "no-such-topic"  # the worker would not start
    message_id = header("message-id")
    async def handle(self, event, context): ...

open("importing", "w").close()
time.sleep(1)
worker = Worker(database="sqlite:///unused.sqlite", kafka=Memory(MemoryBroker()), handlers=[Greet()])
"""


@dataclass
class Shop:
    """A user's module, with its topic and its database."""

    directory: Path
    module: str
    topic: str
    kafka: KafkaServer
    dsn: str
    processes: list[subprocess.Popen[str]]

    def run(self, attribute: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "consumerkit", "run", f"{self.module}:{attribute}", *options]
        with (self.directory / "log").open("w") as log:
            process = subprocess.Popen(command, cwd=self.directory, stderr=log, text=True)
        self.processes.append(process)
        return process

    def send(self, first: int, count: int) -> None:
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap})
        for number in range(first, first + count):
            producer.produce(self.topic, b"x", key=str(number), headers={"message-id": f"m-{number}"})
        assert producer.flush(30) == 0

    def seen(self) -> list[tuple[str, int]]:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute("SELECT id, pid FROM seen ORDER BY id").fetchall()

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def children(self) -> list[int]:
        """The worker processes in the log, the oldest first."""
        return [int(pid) for pid in re.findall(r"worker process \d started \(pid (\d+)\)", self.log)]

    def until(self, holds: Callable[[], bool], what: str, within: float = 120) -> None:
        end = time.monotonic() + within
        while not holds():
            assert time.monotonic() < end, f"waited {within} s for {what}: {self.log}"
            assert any(one.poll() is None for one in self.processes), f"no process is left for {what}: {self.log}"
            time.sleep(0.1)


@pytest.fixture
def shop(
    tmp_path: Path, kafka: KafkaServer, postgres: PostgresServer, database: str, topic_name: str
) -> Iterator[Shop]:
    url = postgres.url(database)
    kafka.create_topic(topic_name, 4)
    (tmp_path / "shop_app.py").write_text(APP.format(topic=topic_name, bootstrap=kafka.bootstrap, url=url))
    tables = Database(url)
    schema.upgrade(tables)
    asyncio.run(tables.dispose())
    with psycopg.connect(postgres.dsn(database)) as connection:
        connection.execute("CREATE TABLE seen (id text, pid int)")  # no key: a double would show
    made = Shop(tmp_path, "shop_app", topic_name, kafka, postgres.dsn(database), [])
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.wait(120)


def test_one_process_consumes_until_sigterm(shop: Shop) -> None:
    process = shop.run("record")
    shop.send(0, 200)
    shop.until(lambda: len(shop.seen()) == 200, "200 effects")

    process.send_signal(signal.SIGTERM)

    assert process.wait(120) == 0
    assert {pid for _, pid in shop.seen()} == {process.pid}
    assert (shop.directory / "closed").read_text() == "x"
    assert "worker started: record" in shop.log
    assert "worker stopped in" in shop.log
    assert "Traceback" not in shop.log


def test_ctrl_c_is_clean_too_and_json_logs_are_json(shop: Shop) -> None:
    process = shop.run("record", "--log-format", "json", "--log-level", "debug")
    shop.send(0, 10)
    shop.until(lambda: len(shop.seen()) == 10, "10 effects")

    process.send_signal(signal.SIGINT)

    assert process.wait(120) == 0
    told = [json.loads(line) for line in shop.log.splitlines()]
    (commits, *_) = [one for one in told if one.get("event.name") == "consumerkit.GroupCommitted"]
    assert commits["consumerkit.handler"] == "record"
    assert commits["consumerkit.processed"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("transport, killed", [("confluent", 1), ("aiokafka", 2)])
def test_killed_worker_processes_are_replaced_and_each_message_has_one_effect(
    shop: Shop, transport: str, killed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sessions of the dead ones outlast the test, so the groups were left for them."""
    monkeypatch.setenv("SHOP_TRANSPORT", transport)
    process = shop.run("record", "--workers", "2")
    sent = itertools.count(step=20)

    def both_work() -> bool:
        shop.send(next(sent), 20)
        return len({pid for _, pid in shop.seen()}) == 2

    shop.until(both_work, "both processes to work")
    victims = shop.children()[:killed]

    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    for _ in range(10):
        shop.send(next(sent), 20)
    total = next(sent)
    shop.until(lambda: len(shop.seen()) >= total, f"{total} effects")
    shop.until(lambda: len(shop.children()) == 2 + killed, "the processes in their place")
    assert f"left group {shop.topic}.record for a dead worker process" in shop.log

    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert sorted(id_ for id_, _ in shop.seen()) == sorted(f"m-{number}" for number in range(total))
    later = {pid for id_, pid in shop.seen() if int(id_[2:]) >= total - 200}
    assert later - set(victims)


@pytest.mark.parametrize(
    "attribute, options, said",
    [
        ("missing", [], r"error: handler 'record': topic '.*\.missing' does not exist"),
        ("record", ["--only", "recrod"], r"error: --only 'recrod': no handler has this name; did you mean 'record'\?"),
        ("broken", [], r"error: target 'shop_app:broken': RuntimeError: no secret store \(.*shop_app.py:\d+\)"),
        ("recrod", [], r"error: target 'shop_app:recrod': shop_app has no attribute 'recrod'; did you mean 'record'\?"),
    ],
)
def test_what_cannot_start_is_one_line_and_exit_status_2(
    shop: Shop, attribute: str, options: list[str], said: str
) -> None:
    assert shop.run(attribute, *options).wait(120) == 2
    (line,) = [line for line in shop.log.splitlines() if line.startswith("error: ")]
    assert re.match(said, line)
    assert "Traceback" not in shop.log


def test_with_json_logs_the_error_is_json(shop: Shop) -> None:
    assert shop.run("missing", "--log-format", "json").wait(120) == 2
    told = [json.loads(line) for line in shop.log.splitlines()]
    assert (told[-1]["severity_text"], told[-1]["body"][:16]) == ("CRITICAL", "handler 'record'")


def test_the_supervisor_gives_up_when_no_process_can_start(shop: Shop) -> None:
    assert shop.run("missing", "--workers", "2").wait(120) == 2
    assert "all 2 worker processes failed to start; giving up" in shop.log


def test_sighup_replaces_the_processes_under_load_and_doubles_nothing(shop: Shop) -> None:
    process = shop.run("record", "--workers", "2")
    shop.send(0, 100)
    shop.until(lambda: len(shop.seen()) == 100, "100 effects")
    old = shop.children()

    process.send_signal(signal.SIGHUP)
    sent = 100
    while "every worker process is replaced" not in shop.log:
        shop.send(sent, 20)
        sent += 20
        assert process.poll() is None, shop.log
        time.sleep(0.1)
    shop.until(lambda: len(shop.seen()) >= sent, f"{sent} effects")
    process.send_signal(signal.SIGTERM)

    assert process.wait(120) == 0, shop.log
    assert sorted(id_ for id_, _ in shop.seen()) == sorted(f"m-{number}" for number in range(sent))
    assert len(shop.children()) == 4
    assert "started again" not in shop.log
    assert {pid for id_, pid in shop.seen() if int(id_[2:]) < 100} <= set(old)


@pytest.mark.parametrize("options", [[], ["--workers", "2"]])
def test_a_handler_that_hangs_beyond_the_grace_is_told_by_the_exit_status(shop: Shop, options: list[str]) -> None:
    shop.send(0, 1)
    process = shop.run("hang_patiently", "--grace", "1", *options)
    shop.until((shop.directory / "hanging").exists, "the handler to hang")

    process.send_signal(signal.SIGTERM)

    assert process.wait(120) == 3


def test_a_signal_while_the_target_is_loaded_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "slow_app.py").write_text(SLOW)
    command = [sys.executable, "-m", "consumerkit", "run", "slow_app:worker"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        _wait_for(tmp_path / "importing")
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0


def test_two_signals_end_a_target_that_hangs_while_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "hanging_app.py").write_text("import time; open('importing', 'w').close(); time.sleep(600)")
    command = [sys.executable, "-m", "consumerkit", "run", "hanging_app:worker"]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        _wait_for(tmp_path / "importing")
        process.send_signal(signal.SIGINT)
        time.sleep(2.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_second_signal_quits_at_once(shop: Shop) -> None:
    shop.send(0, 1)
    process = shop.run("hang_patiently")
    shop.until((shop.directory / "hanging").exists, "the handler to hang")

    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # the same request, as the members of a signalled group hear it
    time.sleep(2.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)

    assert process.wait(120) == 130
