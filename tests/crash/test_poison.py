"""Messages that kill the process are dead-lettered after three crashes alone, and other messages never."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine, create_engine, text

from consumerkit.storage import schema
from consumerkit.storage.database import Database
from tests.crash.poison_app import VARIABLE, Base
from tests.services import KafkaServer, PostgresServer

pytestmark = pytest.mark.calm

ROOT = Path(__file__).parents[2]
MESSAGES = 300
# Four crashes until a partition's messages run alone, three alone; more if other messages were first found in between.
MOST_CRASHES = 15
RESTART_WITHIN = 480.0  # a restart takes three seconds, and on a busy machine thirty
STATUS = {b"exit": 3, b"late": 4, b"kill": -9, b"segfault": -11, b"memory": -11}


class Reaper:
    """Keeps one worker process running and counts its crashes."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
        self.crashes: Counter[int] = Counter()
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "consumerkit", "run", "tests.crash.poison_app:worker"]
        return subprocess.Popen(command, env=self._environment, cwd=ROOT)

    def look(self) -> None:
        """Start the process again if it died."""
        if (status := self._process.poll()) is not None:
            self.crashes[status] += 1
            self._process = self._start()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(120)


@pytest.fixture
def settings(kafka: KafkaServer, postgres: PostgresServer, database: str, topic_name: str) -> Iterator[dict[str, str]]:
    kafka.create_topic(topic_name, partitions=1)
    url, dsn = postgres.url(database), postgres.dsn(database)
    yield {"bootstrap": kafka.bootstrap, "database": url, "dsn": dsn, "topic": topic_name}
    kafka.delete_topic(topic_name)


@pytest.mark.timeout(RESTART_WITHIN + 60)
@pytest.mark.parametrize(
    "poison",
    [
        pytest.param({100: b"memory"}, id="fresh"),
        pytest.param({100: b"memory", 150: b"parked:exit"}, id="fresh-and-parked", marks=pytest.mark.variant),
        pytest.param({299: b"late"}, id="behind-duplicates", marks=pytest.mark.matrix),
        pytest.param({100: b"segfault", 200: b"parked:memory"}, id="in-c", marks=pytest.mark.matrix),
        pytest.param({0: b"kill", 299: b"exit"}, id="first-and-last", marks=pytest.mark.matrix),
        pytest.param({100: b"exit", 101: b"kill", 250: b"parked:segfault"}, id="neighbours", marks=pytest.mark.matrix),
    ],
)
def test_a_message_that_kills_the_process_is_dead_after_three_crashes_alone(
    settings: dict[str, str], poison: dict[int, bytes]
) -> None:
    asyncio.run(_make_tables(settings["database"]))
    engine = create_engine(settings["database"])
    Base.metadata.create_all(engine)
    _produce(settings, poison)
    reaper = Reaper({VARIABLE: json.dumps(settings)})
    end = time.monotonic() + RESTART_WITHIN
    try:
        while _count(engine, "SELECT count(*) FROM consumerkit_processed_messages WHERE outcome <> 2") < MESSAGES:
            assert time.monotonic() < end, f"not done after {dict(reaper.crashes)} crashes"
            assert reaper.crashes.total() <= len(poison) * MOST_CRASHES, f"still not done after {dict(reaper.crashes)}"
            reaper.look()
            time.sleep(0.2)
    finally:
        reaper.stop()

    with engine.connect() as connection:
        effects = Counter(connection.scalars(text("SELECT message_id FROM effects")))
        rows = connection.execute(text("SELECT message_id, reason FROM consumerkit_dead_letters"))
        words = connection.execute(text("SELECT message_id, beside FROM last_words ORDER BY number")).all()
        dead = {message_id: reason for message_id, reason in rows}  # noqa: C416 - rows are not plain tuples
        parked = connection.scalar(text("SELECT count(*) FROM consumerkit_parked_messages"))
    engine.dispose()
    assert dead == {f"m{number}": "killed_process" for number in poison}
    assert effects == Counter(f"m{number}" for number in range(MESSAGES) if number not in poison)
    assert parked == 0
    # The faults fired, each by itself three times in the end, and by nothing else did the process die.
    for number, kind in poison.items():
        beside = [row.beside for row in words if row.message_id == f"m{number}"]
        assert beside[-3:] == [0, 0, 0]
        assert reaper.crashes[STATUS[kind.rpartition(b":")[2]]] >= len(beside) >= 4
    assert sum(reaper.crashes.values()) == len(words)


async def _make_tables(url: str) -> None:
    database = Database(url)
    await database.run(lambda session: schema.apply(session))
    await database.dispose()


def _produce(settings: dict[str, str], poison: dict[int, bytes]) -> None:
    producer = Producer({"bootstrap.servers": settings["bootstrap"]})
    for number in range(MESSAGES):
        headers: list[tuple[str, str | bytes | None]] = [("message-id", f"m{number}".encode())]
        producer.produce(settings["topic"], poison.get(number, b"fine"), f"k{number}".encode(), headers=headers)
    assert producer.flush(120) == 0


def _count(engine: Engine, query: str) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text(query)) or 0)
