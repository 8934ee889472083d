"""`python -m benchmarks.rolling`: roll two worker processes by SIGHUP under load, and time the pauses.

A message goes to each of 20 keys every 250 ms, on four partitions. SIGHUP goes to `consumerkit run --workers 2` again
and again; each time what is told is how long the roll took and the longest time for which a key had no message handled.
Before, it says the same of a while without a roll. At the end each message that was sent has one row, or the run fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, pairwise
from pathlib import Path
from uuid import uuid4

import psycopg
from confluent_kafka import Producer

from benchmarks.recovery import until
from consumerkit.storage import schema
from consumerkit.storage.database import Database
from tests.services import KafkaServer, PostgresServer

KEYS = 20
PARTITIONS = 4
EVERY = 0.25
APP = """
import os, time
from sqlalchemy import text
from consumerkit import Context, Handler, Ordering, header
from consumerkit.transports.kafka import Kafka
from consumerkit.worker import Worker

class Record(Handler[bytes]):
    name = "record"
    topic = {topic!r}
    message_id = header("message-id")
    ordering = Ordering.KEY
    async def handle(self, event: bytes, context: Context) -> None:
        values = {{"id": context.message_id, "pid": os.getpid(), "at": time.monotonic()}}
        await context.session.execute(text("INSERT INTO handled (id, pid, at) VALUES (:id, :pid, :at)"), values)

worker = Worker(database={url!r}, kafka=Kafka({bootstrap!r}, transport={transport!r}), handlers=[Record()])
"""
# Without a unique key: a message that is handled twice has two rows.
TABLE = "CREATE TABLE handled (row bigserial, id text, pid int, at float)"


class Traffic:
    """Messages `key-number`, and how many each key got."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "enable.idempotence": True})
        self._topic = topic
        self._over = threading.Event()
        self.rounds = 0

    @contextmanager
    def flowing(self) -> Iterator[None]:
        thread = threading.Thread(target=self._send)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            assert self._producer.flush(30) == 0

    def _send(self) -> None:
        for number in count():
            for key in range(KEYS):
                self._producer.produce(self._topic, b"x", key=b"%d" % key, headers={"message-id": f"{key}-{number}"})
            self._producer.poll(0)
            self.rounds = number + 1
            if self._over.wait(EVERY):
                return


class Rolled:
    """A supervisor with two worker processes, and what they have written."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self._log = directory / "log"
        self._dsn = dsn
        command = [sys.executable, "-m", "consumerkit", "run", "rolling_app:worker", "--workers", "2"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=directory, stderr=log, stdin=subprocess.DEVNULL)

    def keeps_up(self, rounds: int) -> bool:
        """Whether two processes work, and each key's last rounds but ten have been handled."""
        query = (
            "SELECT count(DISTINCT split_part(id, '-', 1)), count(DISTINCT pid) FROM handled "
            "WHERE at > %s AND split_part(id, '-', 2)::int >= %s"
        )
        with psycopg.connect(self._dsn) as connection:
            return connection.execute(query, [time.monotonic() - 4, rounds - 10]).fetchone() == (KEYS, 2)

    def roll(self) -> tuple[float, float]:
        """Replace both processes; return when that began and when it was over."""
        before, began = self._replaced(), time.monotonic()
        self.process.send_signal(signal.SIGHUP)
        until(lambda: self._replaced() > before, "both processes to be replaced")
        return began, time.monotonic()

    def pause(self, began: float, ended: float) -> float:
        """Return for how long a key had no message handled between two moments, the longest."""
        moments: dict[str, list[float]] = defaultdict(list)
        with psycopg.connect(self._dsn) as connection:
            query = "SELECT split_part(id, '-', 1), at FROM handled WHERE at BETWEEN %s AND %s ORDER BY at"
            for key, at in connection.execute(query, [began - 1, ended + 1]):
                moments[key].append(at)
        assert len(moments) == KEYS
        return max(later - earlier for some in moments.values() for earlier, later in pairwise(some))

    def handled(self) -> list[str]:
        """Return the IDs in the order in which their rows were written."""
        with psycopg.connect(self._dsn) as connection:
            return [one for (one,) in connection.execute("SELECT id FROM handled ORDER BY row")]

    def _replaced(self) -> int:
        return self._log.read_text().count("every worker process is replaced and works")


def checked(handled: list[str], rounds: int) -> dict[str, int]:
    """Count what was lost, doubled and overtaken."""
    sent = {f"{key}-{number}" for key in range(KEYS) for number in range(rounds)}
    numbers: dict[str, list[int]] = defaultdict(list)
    for one in handled:
        key, _, number = one.partition("-")
        numbers[key].append(int(number))
    return {
        "sent": len(sent),
        "lost": len(sent - set(handled)),
        "doubled": sum(times - 1 for times in Counter(handled).values()),
        "overtaken": sum(later < earlier for some in numbers.values() for earlier, later in pairwise(some)),
    }


def measure(rolled: Rolled, traffic: Traffic, rolls: int) -> tuple[list[float], list[float], list[float]]:
    """Return the longest pauses without a roll, those of each roll, and how long each roll took."""
    calm, pauses, took = [], [], []
    for turn in range(1, rolls + 1):
        until(lambda: rolled.keeps_up(traffic.rounds), "both processes to keep up")
        began = time.monotonic()
        time.sleep(10)
        calm.append(rolled.pause(began, time.monotonic()))
        began, ended = rolled.roll()
        until(lambda: rolled.keeps_up(traffic.rounds), "both processes to keep up")
        pauses.append(rolled.pause(began, ended))
        took.append(ended - began)
        print(f"{turn}: {took[-1]:.1f} s, longest pause {pauses[-1]:.2f} s ({calm[-1]:.2f} s before)", flush=True)
    return calm, pauses, took


def main() -> int:
    """Measure, print, and return 1 where a message was lost, doubled or overtaken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rolls", type=int, default=10)
    parser.add_argument("--transport", default="confluent", choices=["confluent", "aiokafka"])
    options = parser.parse_args()
    with ExitStack() as stack:
        kafka = stack.enter_context(KafkaServer.find_or_start())
        postgres = stack.enter_context(PostgresServer.find_or_start())
        topic, name = f"rolling-{uuid4().hex[:8]}", f"rolling_{uuid4().hex[:8]}"
        kafka.create_topic(topic, PARTITIONS)
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        database = Database(postgres.url(name))
        schema.upgrade(database)
        asyncio.run(database.dispose())
        with psycopg.connect(postgres.dsn(name)) as connection:
            connection.execute(TABLE)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        app = APP.format(topic=topic, url=postgres.url(name), bootstrap=kafka.bootstrap, transport=options.transport)
        (directory / "rolling_app.py").write_text(app)
        traffic = Traffic(kafka.bootstrap, topic)
        rolled = Rolled(directory, postgres.dsn(name))
        try:
            with traffic.flowing():
                calm, pauses, took = measure(rolled, traffic, options.rolls)
            sent = KEYS * traffic.rounds
            until(lambda: len(set(rolled.handled())) >= sent, "the last messages")
        except TimeoutError:
            print((directory / "log").read_text()[-4000:], file=sys.stderr)
            raise
        finally:
            rolled.process.send_signal(signal.SIGTERM)
            rolled.process.wait(60)
        verdict = checked(rolled.handled(), traffic.rounds)
    for what, found in (("roll", took), ("longest pause", pauses), ("longest pause without a roll", calm)):
        print(f"{what}: median {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})")
    print(json.dumps({**verdict, "load": os.getloadavg()[0]}))
    return int(any(verdict[what] for what in ("lost", "doubled", "overtaken")))


if __name__ == "__main__":
    sys.exit(main())
