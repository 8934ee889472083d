"""What all competitors stand on: a filled topic, one durable PostgreSQL, a database for each."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import psycopg
from confluent_kafka import Consumer, Producer, TopicPartition
from sqlalchemy import create_engine

from benchmarks.competitors import Course
from benchmarks.meter import Measured
from benchmarks.shop import HANDLER, MESSAGE_ID_HEADER, Base
from consumerkit.storage import schema
from consumerkit.storage.database import Database
from tests.services import KafkaServer, PostgresServer, ServiceError

ROOT = Path(__file__).parents[1]
PARTITIONS = 4
BY_HAND = ("faststream", "bare-message", "bare-group", "one-by-one", "gather")
ROUND_TIMEOUT = 240
_DURABLE = ("fsync", "synchronous_commit", "full_page_writes")
_PREFILL_INBOX = """
    INSERT INTO inbox SELECT %(consumer)s, gen_random_uuid()::text, now() - n * interval '0.5 seconds'
    FROM generate_series(1, %(rows)s) AS n
"""
_PREFILL_LEDGER = """
    INSERT INTO consumerkit_processed_messages (consumer, digest, message_id, fingerprint, outcome, processed_at)
    SELECT %(number)s, decode(md5(id), 'hex'), id, decode(md5('f' || id), 'hex'), 1, now() - n * interval '0.5 seconds'
    FROM (SELECT n, gen_random_uuid()::text AS id FROM generate_series(%(rows)s, 1, -1) AS n) AS made
"""


class Stage:
    """Servers, topic and databases of one run.

    Args:
        kafka: The broker.
        postgres: The database server.
        rows: How many rows each ledger holds before the first round.
    """

    def __init__(self, kafka: KafkaServer, postgres: PostgresServer, rows: int) -> None:
        self.kafka = kafka
        self.postgres = postgres
        self.rows = rows
        self.topic = f"bench-{uuid4().hex[:12]}"
        self._templates: dict[bool, str] = {}
        self.databases: dict[str, str] = {}
        self._ids: list[list[str]] = [[] for _ in range(PARTITIONS)]

    def fill_topic(self, messages: int) -> None:
        """Make the topic, and send so many messages, each with an ID of its own."""
        self.kafka.create_topic(self.topic, PARTITIONS)
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap, "linger.ms": 50, "enable.idempotence": True})
        for number in range(messages):
            payment_id = str(uuid4())
            self._ids[number % PARTITIONS].append(payment_id)
            account = f"account-{number * 7919 % 5000}"
            value = {"payment_id": payment_id, "account": account, "amount": number % 10_000, "currency": "EUR"}
            producer.produce(
                self.topic,
                json.dumps({**value, "captured_at": "2026-01-02T03:04:05Z"}).encode(),
                key=account,
                partition=number % PARTITIONS,
                headers=cast(Any, [(MESSAGE_ID_HEADER, payment_id.encode())]),
            )
            if number % 20_000 == 0:
                producer.flush(60)  # below the client's own limit of what may wait
        assert producer.flush(60) == 0

    def make_database(self, name: str, *, by_hand: bool) -> None:
        """Make a competitor's database, its ledger filled: a copy of the first of its kind."""
        if by_hand not in self._templates:
            template = self.postgres.create_database()
            (self._fill_by_hand if by_hand else self._fill_ours)(template)
            self._templates[by_hand] = template
        database = f"{self._templates[by_hand]}_{len(self.databases)}"
        with psycopg.connect(self.postgres.admin_dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database} TEMPLATE {self._templates[by_hand]}".encode())
        self.databases[name] = database

    def _fill_by_hand(self, database: str) -> None:
        self._make_tables(database)
        with psycopg.connect(self.postgres.dsn(database)) as connection:
            connection.execute(_PREFILL_INBOX, {"consumer": HANDLER, "rows": self.rows})
        self._settle(database)

    def _fill_ours(self, database: str) -> None:
        self._make_tables(database)
        ours = Database(self.postgres.url(database))
        schema.upgrade(ours)
        asyncio.run(ours.dispose())
        with psycopg.connect(self.postgres.dsn(database)) as connection:
            # The first consumer to be entered gets number 1.
            connection.execute(_PREFILL_LEDGER, {"number": 1, "rows": self.rows})
        self._settle(database)

    def _make_tables(self, database: str) -> None:
        engine = create_engine(self.postgres.url(database))
        Base.metadata.create_all(engine)
        engine.dispose()

    def _settle(self, database: str) -> None:
        with psycopg.connect(self.postgres.dsn(database), autocommit=True) as connection:
            connection.execute("VACUUM (FREEZE, ANALYZE)")
            connection.execute("CHECKPOINT")

    def check(self, name: str) -> int:
        """Compare a competitor's rows with the log: each ID below its committed offsets once, and no ID twice.

        Returns:
            How many IDs it processed.

        Raises:
            AssertionError: One is missing, or there twice, or its ledger tells otherwise.
        """
        # What was there before the first round has no entry in the log.
        table = "inbox" if name in BY_HAND else "consumerkit_processed_messages"
        with psycopg.connect(self.postgres.dsn(self.databases[name])) as connection:
            effects = [row[0] for row in connection.execute("SELECT payment_id FROM entries")]
            claims = {row[0] for row in connection.execute(f"SELECT message_id FROM {table}".encode())}
        claims &= {one for ids in self._ids for one in ids}
        below = [one for at, ids in zip(self._committed(name), self._ids, strict=True) for one in ids[:at]]
        assert len(effects) == len(set(effects)), f"{name}: an effect is there twice"
        assert set(effects) == claims, f"{name}: effects and claims differ"
        assert set(below) <= set(effects), f"{name}: an effect below the committed offset is missing"
        assert below, f"{name}: no offset was committed"
        return len(effects)

    def _committed(self, name: str) -> list[int]:
        consumer = Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": self.group(name)})
        try:
            wanted = [TopicPartition(self.topic, number) for number in range(PARTITIONS)]
            return [max(0, found.offset) for found in consumer.committed(wanted, timeout=10)]
        finally:
            consumer.close()

    def group(self, name: str) -> str:
        """A competitor's consumer group, which keeps its place between rounds."""
        return f"{self.topic}-{name}"

    def run(self, name: str, place: str, warm_up: int, messages: int, lanes: int = 0) -> Measured:
        """Run one round of a competitor in a process of its own.

        Raises:
            ServiceError: The process failed.
        """
        course = Course(
            self.kafka.bootstrap, self.postgres.url(self.databases[name]), self.topic, self.group(name), lanes
        )
        given = json.dumps({"course": course._asdict(), "warm_up": warm_up, "messages": messages})
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.round", place],
            input=given,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            timeout=ROUND_TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            raise ServiceError(f"the round of {name} failed with status {done.returncode}; its own output is above")
        return Measured(**json.loads(done.stdout.splitlines()[-1]))

    def close(self) -> None:
        """Remove topic and databases."""
        for database in [*self.databases.values(), *self._templates.values()]:
            self.postgres.drop_database(database)
        self.kafka.delete_topic(self.topic)

    def require_durability(self) -> None:
        """Refuse a server that could lose what it has committed: its COMMIT would cost nothing.

        Raises:
            ServiceError: A setting is off.
        """
        with psycopg.connect(self.postgres.admin_dsn) as connection:
            for name in _DURABLE:
                row = connection.execute(f"SHOW {name}".encode()).fetchone()
                if row is None or row[0] != "on":
                    raise ServiceError(f"PostgreSQL runs with {name}={row and row[0]}; a benchmark needs it on")
