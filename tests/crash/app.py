"""The worker that the crash tests kill: `python -m tests.crash.app`, which reads its settings from standard input.

A process may be started long before it is given them: what takes a second, importing, is then over.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Self

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from consumerkit import Context, DeadLetter, Handler, Reject, Retry, fixed, header
from consumerkit import failpoints as product_failpoints
from consumerkit.events import Event, GroupCommitted, PartitionsAssigned
from consumerkit.transports.kafka import Client, Kafka, Option
from consumerkit.worker import Worker
from tests.crash.model import Effect, Payment
from tests.crash.mutants import MUTANTS


@dataclass(frozen=True)
class Settings:
    """The settings of one worker process."""

    bootstrap: str
    database: str
    transport: Client
    topic: str
    dead_letter_topic: str
    journal: str
    failpoint: str = ""
    mutant: str = ""
    slow: float = 0.0
    concurrency: int = 2
    session: int = 3000
    arm_after: int = 2
    batch_time: float = 0.5
    grace: float = 60.0
    stall_timeout: float = 60.0

    @classmethod
    def read(cls) -> Self:
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)  # a spare that was never needed
        return cls(**json.loads(line))

    @property
    def options(self) -> dict[str, Option]:
        """How long the group waits for a killed member: this is the most frequent wait of most runs."""
        if self.transport == "confluent":
            return {"session.timeout.ms": self.session, "heartbeat.interval.ms": 500}
        return {"session_timeout_ms": self.session, "heartbeat_interval_ms": 500}

    def line(self) -> bytes:
        """What `read` takes."""
        return f"{json.dumps(asdict(self))}\n".encode()


class Credit(Handler[Payment]):
    name = "credit"
    message_id = header("message-id")
    retry = Retry(attempts=3, wait=fixed(0.05), in_place=3)
    shares_transaction = True  # its waits have no effect

    def __init__(self, settings: Settings) -> None:
        self.topic = settings.topic
        self.group = settings.topic
        self.dead_letter = DeadLetter(settings.dead_letter_topic)
        self.concurrency = settings.concurrency
        self.batch_time = settings.batch_time
        self._slow = settings.slow

    async def handle(self, event: Payment, context: Context) -> None:
        message = context.message
        if self._slow:
            await asyncio.sleep(self._slow)
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
        if event.kind == "swallow":
            await context.session.flush()
            with suppress(DBAPIError):
                await context.session.execute(text("SELECT 1 / 0"))
        if event.kind == "stall":
            time.sleep(3600)  # noqa: ASYNC251 - the loop stands still, which is what the watchdog is for
        if event.kind == "reject":
            raise Reject("this account is closed")
        if event.kind == "forever" or (event.kind == "flaky" and context.attempt == 1):
            raise RuntimeError("the handler's own failure")


class Journal:
    """Records what the verdict counts, in the file that the test reads; arms the kill when it may happen.

    A process is killed only once it has been given partitions `arm_after` times: with 2, every process of a run has
    seen a rebalance before its end.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._assignments = 0
        self._file = os.open(settings.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __call__(self, event: Event) -> None:
        if isinstance(event, PartitionsAssigned) and event.partitions:
            self._assignments += 1
            self.write("assigned", len(event.partitions))
            if self._assignments == self._settings.arm_after and self._settings.failpoint:
                os.environ["CONSUMERKIT_FAILPOINT"] = self._settings.failpoint
                product_failpoints.arm()
        elif isinstance(event, GroupCommitted):
            # one line, so that a kill between two never leaves half an entry
            self.write("group", [event.processed, event.duplicates, event.duplicates_of_dead, event.dead])

    def write(self, kind: str, value: object) -> None:
        os.write(self._file, f"{json.dumps([os.getpid(), kind, value])}\n".encode())


def build(settings: Settings, journal: Journal) -> Worker:
    if settings.mutant:
        MUTANTS[settings.mutant]()
    return Worker(
        database=settings.database,
        kafka=Kafka(settings.bootstrap, transport=settings.transport, options=settings.options),
        handlers=[Credit(settings)],
        observers=[journal],
        grace=settings.grace,
        stall_timeout=settings.stall_timeout,
        failpoints=True,
    )


async def main(settings: Settings) -> int:
    """Run until SIGTERM; 0 when everything in hand was finished within the grace."""
    journal = Journal(settings)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    finished = await build(settings, journal).run(stopping)
    journal.write("stopped", finished)
    return 0 if finished else 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    sys.exit(asyncio.run(main(Settings.read())))
