"""A worker that stands still in a chosen way: `python -m tests.integration.stuck loop DATABASE-FILE`."""

import asyncio
import sys
import time
from typing import Any

from sqlalchemy.orm import Session
from typing_extensions import override

from consumerkit import Context, Handler, header
from consumerkit.message import Message
from consumerkit.transports.base import Consumer, Health, Subscription
from consumerkit.transports.memory import Memory
from consumerkit.transports.memory.group import MemoryConsumer
from tests.integration.memory_stage import TOPIC, MemoryStage, Write

STALL = 1.0
# For a working one: a busy machine may delay it for as long as the limit of the others.
SOUND_STALL = 4.0


class Stuck(Handler[bytes]):
    """In a thread that does not come back."""

    name = "write"
    topic = TOPIC
    message_id = header("id")

    def handle(self, event: bytes, context: Context[Session]) -> None:
        time.sleep(60)


async def block_the_loop(_: Context) -> None:
    time.sleep(60)  # noqa: ASYNC251 - the mistake that the watchdog is there for


class Hung(MemoryConsumer):
    """Does not answer a fetch any more."""

    @override
    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        await asyncio.sleep(60)
        return []


class Silent(MemoryConsumer):
    """Has a client whose own loop stands still."""

    @override
    def health(self) -> Health:
        return Health(60.0, None)


class Failed(MemoryConsumer):
    """Has a client that has given up."""

    @override
    def health(self) -> Health:
        return Health(0.0, "authorisation was withdrawn")


class Transport(Memory):
    def __init__(self, memory: Memory, consumer: type[MemoryConsumer]) -> None:
        super().__init__(memory.broker)
        self._kind = consumer

    @override
    def consumer(self, subscription: Subscription) -> Consumer:
        return self._kind(self.broker.group(subscription.group), subscription)


KINDS = {"fetch": Hung, "client": Silent, "fatal": Failed}


async def main(way: str, file: str) -> None:
    place = MemoryStage(f"sqlite:///{file}")
    await place.create_tables()
    place.append(1)
    handler: Any = Stuck() if way == "thread" else Write(block_the_loop if way == "loop" else None)
    stall = SOUND_STALL if way == "sound" else STALL
    worker = place.make(handler, stall_timeout=stall, transaction_timeout=1.0)
    worker.transport = Transport(Memory(place.broker), KINDS.get(way, MemoryConsumer))
    print("starts", flush=True)
    # It works for longer than a hasty watchdog would wait.
    await worker.run(asyncio.Event()) if way != "sound" else await asyncio.wait_for(run_a_while(worker), 120)


async def run_a_while(worker: Any) -> None:
    async with worker:
        await asyncio.sleep(2 * SOUND_STALL)


async def abandon(file: str) -> None:
    """Leave the loop without having stopped the worker."""
    place = MemoryStage(f"sqlite:///{file}")
    await place.create_tables()
    await place.make(Write(), stall_timeout=STALL).start()


if __name__ == "__main__":
    if sys.argv[1] == "abandoned":
        asyncio.run(abandon(sys.argv[2]))
        time.sleep(4 * STALL)
    else:
        asyncio.run(main(*sys.argv[1:]))
