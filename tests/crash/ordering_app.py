"""The worker of the tests of order: `python -m tests.crash.ordering_app`, its settings in one environment variable."""

import asyncio
import faulthandler
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Self

import psycopg

from consumerkit import Context, DeadLetter, Handler, Ordering, Retry, fixed, header
from consumerkit.events import BrakeOff, BrakeOn, Event, PartitionInDoubt, PartitionTaken
from consumerkit.transports.kafka import Client, Kafka, Option
from consumerkit.worker import Worker
from tests.crash.model import Effect, Payment

VARIABLE = "ORDERING_SETTINGS"
ATTEMPTS = 6
# A killed or paused member is missed after three seconds.
OPTIONS: dict[str, dict[str, Option]] = {
    "confluent": {"session.timeout.ms": 3000, "heartbeat.interval.ms": 500},
    "aiokafka": {"session_timeout_ms": 3000, "heartbeat_interval_ms": 500},
}
TABLES = (
    (
        "CREATE TABLE attempts (sequence bigint GENERATED ALWAYS AS IDENTITY, message_id text, attempt integer, "
        "partition integer, pid integer, at timestamptz DEFAULT clock_timestamp())"
    ),
    (
        "CREATE TABLE told (sequence bigint GENERATED ALWAYS AS IDENTITY, pid integer, what text, partition integer, "
        "at timestamptz DEFAULT clock_timestamp())"
    ),
)


@dataclass(frozen=True)
class Settings:
    """The arguments of one worker process."""

    bootstrap: str
    database: str
    dsn: str
    transport: Client
    topic: str
    ordering: str = "KEY"
    wait: float = 0.5
    batch_size: int = 200
    timeout: float = 10.0

    @classmethod
    def read(cls) -> Self:
        return cls(**json.loads(os.environ[VARIABLE]))

    def environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}


class Diary:
    """Records at once on its own connection, whatever happens to the handler's transaction."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True, application_name="tests")

    def attempt(self, message_id: str, attempt: int, partition: int) -> None:
        """A message that may fail is about to be tried."""
        self._connection.execute(
            "INSERT INTO attempts (message_id, attempt, partition, pid) VALUES (%s, %s, %s, %s)",
            [message_id, attempt, partition, os.getpid()],
        )

    def __call__(self, event: Event) -> None:
        if isinstance(event, PartitionTaken | PartitionInDoubt | BrakeOn | BrakeOff):
            partition = getattr(event, "partition", None)
            self._connection.execute(
                "INSERT INTO told (pid, what, partition) VALUES (%s, %s, %s)",
                [os.getpid(), type(event).__name__, partition and partition.partition],
            )


class Ordered(Handler[Payment]):
    """Fails as the payment says, and keeps every attempt of those that do."""

    name = "ordered"
    message_id = header("message-id")
    shares_transaction = True  # its waits have no effect

    def __init__(self, settings: Settings, diary: Diary) -> None:
        self.topic = settings.topic
        self.group = settings.topic
        self.dead_letter = DeadLetter(f"{settings.topic}.dlq")
        self.ordering = Ordering[settings.ordering]
        self.retry = Retry(attempts=ATTEMPTS, wait=fixed(settings.wait))
        self.batch_size = settings.batch_size
        self._diary = diary

    async def handle(self, event: Payment, context: Context) -> None:
        message = context.message
        if event.kind != "ok":
            self._diary.attempt(context.message_id, context.attempt, message.partition)
        context.session.add(
            Effect(
                message_id=context.message_id,
                partition=message.partition,
                offset=message.offset,
                account=event.account,
                amount=event.amount,
                pid=os.getpid(),
            )
        )
        what, _, times = event.kind.partition(":")
        if what == "open":
            await context.session.flush()
            await asyncio.sleep(1.5)
        if what == "forever" or (what in ("fail", "open") and context.attempt <= int(times)):
            raise RuntimeError("the handler's own failure")


async def main() -> int:
    """Run until SIGTERM."""
    settings = Settings.read()
    diary = Diary(settings.dsn)
    worker = Worker(
        database=settings.database,
        kafka=Kafka(settings.bootstrap, transport=settings.transport, options=OPTIONS[settings.transport]),
        handlers=[Ordered(settings, diary)],
        observers=[diary],
        transaction_timeout=settings.timeout,
        failpoints=True,
    )
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    return 0 if await worker.run(stopping) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
