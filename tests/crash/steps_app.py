"""A worker whose steps are killed: `python -m tests.crash.steps_app SETTINGS`, with the settings as JSON.

Its broker is in memory, and has the same log in each process: what is not committed is delivered again, as by Kafka.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Final, TypedDict

from consumerkit import Reject
from consumerkit.transports.memory import Memory, MemoryBroker
from consumerkit.worker import Worker
from tests.integration.memory_stage import TOPIC
from tests.integration.step_stage import (
    Asking,
    AskingInHandle,
    Charging,
    ChargingInHandle,
    PlainAsking,
    PlainCharging,
    PlainRefunding,
    PlainRefusing,
    Provider,
    Refunding,
    Refusing,
    RefusingInHandle,
)

TOPIC_ID: Final = "the same in each process"
KINDS: Final = {one.__name__: one for one in (Charging, PlainCharging, Asking, PlainAsking, Refusing, PlainRefusing)}
IN_HANDLE: Final = {one.__name__: one for one in (ChargingInHandle, AskingInHandle, RefusingInHandle)}
"""Kinds that run their step within `handle`, which SQLite's one writer does not allow."""
UNDONE: Final = {one.__name__: one for one in (Refunding, PlainRefunding)}
"""Kinds whose messages are rejected once their steps are done."""


class Settings(TypedDict):
    """The arguments of the process."""

    database: str
    charges: str
    kind: str
    values: list[str]


def log(broker: MemoryBroker, values: list[str]) -> None:
    """Have a broker's topic be the one of every process."""
    broker.logs.topics[TOPIC].id = TOPIC_ID
    for number, value in enumerate(values):
        broker.append(TOPIC, value.encode(), headers=(("id", b"%d" % number),), partition=0)


def rejected(event: bytes) -> None:
    """Reject a message."""
    raise Reject("as asked")


async def main(settings: Settings) -> None:
    """Run until killed."""
    broker = MemoryBroker(topics={TOPIC: 2})
    log(broker, settings["values"])
    provider = Provider(Path(settings["charges"]))
    if (kind := settings["kind"]) in UNDONE:
        handler: Any = UNDONE[kind](provider, in_handle=rejected)
    else:
        handler = (KINDS | IN_HANDLE)[kind](provider)
    worker = Worker(database=settings["database"], kafka=Memory(broker), handlers=[handler], failpoints=True)
    await worker.run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
