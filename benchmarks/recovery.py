"""`python -m benchmarks.recovery`: kill one of two worker processes, again and again, and time the recovery.

A message goes to each of four partitions every 100 ms. One of the two processes is killed by SIGKILL, at another phase
of their work each time. The recovery is the time from the kill until each partition has handled a message again; what
is told is the slowest partition's. With `--apart` the two processes have no supervisor, as on two machines.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from uuid import uuid4

import psycopg
from confluent_kafka import Producer

from consumerkit.storage import schema
from consumerkit.storage.database import Database
from tests.services import KafkaServer, PostgresServer

PARTITIONS = 4
APP = """
import os, time
from sqlalchemy import text
from consumerkit import Context, Handler, header
from consumerkit.transports.kafka import Kafka
from consumerkit.worker import Worker

class Record(Handler[bytes]):
    name = "record"
    topic = {topic!r}
    message_id = header("message-id")
    async def handle(self, event: bytes, context: Context) -> None:
        values = {{"part": context.message.partition, "pid": os.getpid(), "at": time.monotonic()}}
        await context.session.execute(text("INSERT INTO handled VALUES (:part, :pid, :at)"), values)

kafka = Kafka({bootstrap!r}, transport={transport!r}, options={options!r})
worker = Worker(database={url!r}, kafka=kafka, handlers=[Record()])
"""


@dataclass
class Site:
    """Where the processes run."""

    directory: Path
    kafka: KafkaServer
    dsn: str
    topic: str

    def run(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "consumerkit", "run", "recovery_app:worker", *options]
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=self.directory, stderr=log)

    def handled(self, since: float = 0.0) -> dict[int, tuple[float, int]]:
        """Return when each partition handled its first message since a moment, and in which process."""
        query = "SELECT DISTINCT ON (part) part, at, pid FROM handled WHERE at > %s ORDER BY part, at"
        with psycopg.connect(self.dsn) as connection:
            return {part: (at, pid) for part, at, pid in connection.execute(query, [since])}

    def children(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"started \(pid (\d+)\)", (self.directory / "log").read_text())]


def until(holds: Callable[[], bool], what: str, within: float = 180) -> None:
    end = time.monotonic() + within
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {within} s for {what}")
        time.sleep(0.05)


@contextmanager
def traffic(site: Site) -> Iterator[None]:
    over = threading.Event()
    producer = Producer({"bootstrap.servers": site.kafka.bootstrap, "linger.ms": 0})

    def send() -> None:
        for number in count():
            for partition in range(PARTITIONS):
                producer.produce(site.topic, b"x", partition=partition, headers={"message-id": f"{partition}-{number}"})
            producer.poll(0)
            if over.wait(0.1):
                return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        producer.flush(10)


def shared(site: Site, pids: set[int]) -> bool:
    """Whether these processes, all of them and no other, handle messages of all partitions just now."""
    now = site.handled(time.monotonic() - 2.0)
    return len(now) == PARTITIONS and {pid for _, pid in now.values()} == pids


def kill(site: Site, victim: int, pids: set[int]) -> float:
    """Kill one of the processes once all work; return the seconds until every partition is handled again."""
    until(lambda: shared(site, pids), "all processes to work")
    time.sleep(1 + random.random())
    os.kill(victim, signal.SIGKILL)
    at = time.monotonic()
    until(lambda: len(site.handled(at)) == PARTITIONS, "the recovery")
    return max(when for when, _ in site.handled(at).values()) - at


def supervised(site: Site, number: int) -> Iterator[float]:
    """Kill children of one supervisor; yield the seconds of each recovery."""
    process = site.run("--workers", "2")
    try:
        for turn in range(number):
            wanted = 2 + turn
            until(lambda wanted=wanted: len(site.children()) == wanted, "two children")  # type: ignore[misc]
            pids = {pid for pid in site.children() if Path(f"/proc/{pid}").exists()}
            yield kill(site, sorted(pids)[turn % 2], pids)
    finally:
        _end(process)


def apart(site: Site, number: int) -> Iterator[float]:
    """Kill one of two processes that know nothing of each other; yield the seconds of each recovery."""
    processes = [site.run(), site.run()]
    try:
        for _ in range(number):
            victim = processes.pop(0)
            yield kill(site, victim.pid, {victim.pid, *(one.pid for one in processes)})
            victim.wait()
            processes.append(site.run())
    finally:
        for process in processes:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--transport", default="confluent", choices=["confluent", "aiokafka"])
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--protocol", default="classic", choices=["classic", "consumer"])
    options = parser.parse_args()
    with ExitStack() as stack:
        kafka = stack.enter_context(KafkaServer.find_or_start())
        postgres = stack.enter_context(PostgresServer.find_or_start())
        topic, name = f"recovery-{uuid4().hex[:8]}", f"recovery_{uuid4().hex[:8]}"
        kafka.create_topic(topic, PARTITIONS)
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        database = Database(postgres.url(name))
        schema.upgrade(database)
        asyncio.run(database.dispose())
        with psycopg.connect(postgres.dsn(name)) as connection:
            connection.execute("CREATE TABLE handled (part int, pid int, at float)")
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tuned = {"group.protocol": "consumer"} if options.protocol == "consumer" else {}
        reach = {"bootstrap": kafka.bootstrap, "transport": options.transport, "options": tuned}
        app = APP.format(topic=topic, url=postgres.url(name), **reach)
        (directory / "recovery_app.py").write_text(app)
        site = Site(directory, kafka, postgres.dsn(name), topic)
        with traffic(site):
            for turn, seconds in enumerate((apart if options.apart else supervised)(site, options.kills), 1):
                print(f"{turn}: {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()
