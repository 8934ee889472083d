"""A worker that is killed at the cut of a batch: `python -m tests.crash.waits_app SETTINGS`, with the settings as JSON.

Its broker is in memory and has the same log in each process, as in `tests.crash.steps_app`.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any, TypedDict

from consumerkit import Context, Handler, Retry, fixed, header
from consumerkit.transports.memory import Memory, MemoryBroker
from consumerkit.worker import Worker
from tests.crash.steps_app import log
from tests.integration.memory_stage import TOPIC, line


class Settings(TypedDict):
    """What the process is told."""

    database: str
    mails: str
    first: int
    values: list[str]


class Mailing(Handler[bytes]):
    """Writes a line for each message, and from the message `first` on sends a mail, which is a line in a file."""

    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=3, wait=fixed(0))
    batch_time = 60.0
    concurrency = 1  # what a kill repeats is a lane's

    def __init__(self, mails: Path, first: int, **declared: Any) -> None:
        self.mails = mails
        self.first = first
        vars(self).update(declared)

    async def handle(self, event: bytes, context: Context) -> None:
        context.session.add(line(context))
        if int(context.message_id) >= self.first:
            await asyncio.sleep(0.001)
            descriptor = os.open(self.mails, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(descriptor, b"%s\n" % event)
            os.close(descriptor)


async def main(settings: Settings) -> None:
    """Run until killed."""
    broker = MemoryBroker(topics={TOPIC: 1})
    log(broker, settings["values"])
    handler = Mailing(Path(settings["mails"]), settings["first"])
    worker = Worker(database=settings["database"], kafka=Memory(broker), handlers=[handler], failpoints=True)
    await worker.run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
