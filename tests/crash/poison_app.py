"""A worker whose handler is killed by some messages: `python -m consumerkit run tests.crash.poison_app:worker`."""

import asyncio
import ctypes
import json
import os
import resource
import signal
from pathlib import Path

import psycopg
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consumerkit import Context, Handler, Kafka, Retry, Worker, fixed, header

VARIABLE = "POISON_SETTINGS"
MEMORY, PIECE = 200 << 20, 1 << 20
settings = json.loads(os.environ.get(VARIABLE, "{}"))


class Base(DeclarativeBase):
    """The tables of this test."""


class Effect(Base):
    """Append-only, without a unique key: a double would show."""

    __tablename__ = "effects"
    number: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[str]


class LastWords(Base):
    """Written down before each death, on a connection of its own."""

    __tablename__ = "last_words"
    number: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[str]
    beside: Mapped[int]


def exhaust_memory() -> None:
    """Take all memory up to a limit, like code that does not check its allocations; Python's own code would check."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    while True:
        library.memset(library.malloc(PIECE), 1, PIECE)


WAYS_TO_DIE = {
    "exit": lambda: os._exit(3),
    "late": lambda: os._exit(4),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),  # as the kernel does to a process that exhausts the machine
    "segfault": lambda: ctypes.string_at(0),
    "memory": exhaust_memory,
}


class Deliver(Handler[bytes]):
    """Adds an effect, unless the message says how to die; `parked:...` fails once before."""

    name = "poison"
    message_id = header("message-id")
    retry = Retry(attempts=5, wait=fixed(0.1))
    batch_size = 50

    def __init__(self) -> None:
        self.topic = settings["topic"]
        self.group = settings["topic"]
        self._under_way: list[AsyncSession] = []

    async def handle(self, event: bytes, context: Context) -> None:
        self._under_way = [session for session in self._under_way if session.in_transaction()]
        context.session.add(Effect(message_id=context.message_id))
        await context.session.flush()
        first, _, second = event.decode().partition(":")
        if second and context.attempt == 1:
            raise RuntimeError("parked first")
        if first == "late":
            await asyncio.sleep(1.0)  # the other lane commits what it has in hand
        if die := WAYS_TO_DIE.get(second or first):
            self._say(context.message_id)
            die()
        self._under_way.append(context.session)

    def _say(self, message_id: str) -> None:
        """Write down how many messages were under way besides: in any transaction of this process."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with psycopg.connect(settings["dsn"], autocommit=True) as connection:
            words = "INSERT INTO last_words (message_id, beside) VALUES (%s, %s)"
            connection.execute(words, [message_id, len(self._under_way)])


def worker() -> Worker:
    """Return the worker that `consumerkit run` runs."""
    # A static member that comes back within its session takes its partitions at once.
    options = {"group.instance.id": settings["topic"], "session.timeout.ms": 6000}
    return Worker(
        database=settings["database"], kafka=Kafka(settings["bootstrap"], options=options), handlers=[Deliver()]
    )
