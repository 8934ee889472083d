"""A run: two workers are kept alive while they are killed at named places and at random, join, leave and freeze."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from consumerkit.storage.database import Database
from tests.crash.app import Settings
from tests.crash.director import Director, Plan
from tests.crash.model import Base
from tests.crash.pool import Pool
from tests.crash.sampler import Sampler
from tests.crash.verdict import (
    Verdict,
    check_dead_letter_topic,
    check_nothing_came_twice,
    check_outcomes,
    check_pool,
    check_watch,
)
from tests.crash.workload import PARTITIONS, Feeder, Log
from tests.services import KafkaServer, PostgresServer
from tests.services.tables import make_tables


@dataclass
class Scenario:
    """One run on real servers."""

    plan: Plan
    kafka: KafkaServer
    postgres: PostgresServer
    directory: Path
    topic: str
    log: Log = field(default_factory=Log)
    verdict: Verdict = field(default_factory=Verdict)

    def run(self) -> Verdict:
        """Set up, run, take down, judge."""
        name = self.postgres.create_database()
        try:
            asyncio.run(_create_tables(self.postgres.url(name)))
            if self.plan.crossed:
                _slow_claims(self.postgres.dsn(name))
            self.kafka.create_topic(self.topic, PARTITIONS)
            self.kafka.create_topic(f"{self.topic}.dlq", PARTITIONS)
            self._run(name)
        finally:
            self.postgres.drop_database(name)
        return self.verdict

    def _run(self, database: str) -> None:
        began, dsn = time.monotonic(), self.postgres.dsn(database)
        settings = Settings(
            bootstrap=self.kafka.bootstrap,
            database=self.postgres.url(database),
            transport=self.plan.transport,
            topic=self.topic,
            dead_letter_topic=f"{self.topic}.dlq",
            journal=str(self.directory / "journal.jsonl"),
            mutant=self.plan.mutant,
            slow=self.plan.slow,
            # On a busy machine no member may miss its session, unless the run kills one.
            session=45_000 if self.plan.handed_over else 3000,
            # What a second lane has finished above the first one's position is delivered again, as it should be.
            concurrency=1 if self.plan.handed_over else 2,
            arm_after=self.plan.arm_after,
            # However slow the machine is, the size of a batch is what the plan makes it.
            batch_time=60.0,
            stall_timeout=self.plan.stall_timeout,
        )
        with (
            Pool(settings, self.directory) as pool,
            Sampler(self.kafka.bootstrap, self.topic, self.topic, dsn, self.log) as sampler,
        ):
            feeder = Feeder(self.kafka.bootstrap, self.topic, self.log)
            director = Director(self.plan, pool, sampler, feeder, began + self.plan.deadline)
            director.direct(self.plan.batches())
            director.finish(lambda: _outbox_is_empty(dsn))
            self.verdict.void += director.notes + director.left_undone()
            sampler.sample()
            check_pool(self.verdict, pool, self.plan.names, typical_group=self.plan.typical_group)
            check_watch(self.verdict, sampler.watch)
            if self.plan.handed_over:
                check_nothing_came_twice(self.verdict, pool, self.log)
        check_outcomes(self.verdict, self.log, dsn)
        check_dead_letter_topic(self.verdict, self.kafka.bootstrap, f"{self.topic}.dlq", dsn)
        self.verdict.figures["seconds"] = round(time.monotonic() - began, 1)


async def _create_tables(url: str) -> None:
    database = Database(url)
    try:
        await database.run(make_tables)
        await database.run(lambda session: Base.metadata.create_all(session.connection()))
    finally:
        await database.dispose()


def _slow_claims(dsn: str) -> None:
    """Make claims last, so that they meet."""
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END'"
        )
        connection.execute(
            "CREATE TRIGGER wait BEFORE INSERT ON consumerkit_processed_messages FOR EACH ROW EXECUTE FUNCTION wait()"
        )


def _outbox_is_empty(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT count(*) FROM consumerkit_outbox_messages").fetchone() == (0,)
