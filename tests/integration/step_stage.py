"""A handler with a step, and a provider whose effects are counted in a file that only grows."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import Table, insert, select
from sqlalchemy.orm import Session

from consumerkit import (
    AlreadyDone,
    Context,
    Effects,
    Handler,
    IdempotencyKey,
    Message,
    PlainEffects,
    Reject,
    Retry,
    fixed,
    header,
    step,
)
from consumerkit.events import StepAwaited
from consumerkit.handlers.declaration import declare
from consumerkit.steps.arguments import fingerprint
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.memory_stage import TOPIC, Line, MemoryStage, line, opened
from tests.integration.stage import Run, pause

STEPS: Final = DEFAULT_TABLES.message_steps
CONSUMERS: Final = DEFAULT_TABLES.consumers
LEDGER: Final = DEFAULT_TABLES.processed_messages
LOT: Final = DEFAULT_TABLES.parked_messages
LETTERS: Final = DEFAULT_TABLES.dead_letters
PROGRESS: Final = DEFAULT_TABLES.partition_progress


class ProviderDown(Exception):
    """What the provider answers with."""


class Provider:
    """Charges, and writes each charge as a line into a file; it does not prevent a second charge."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: list[str] = []
        self.asked: list[str] = []
        self.before: Callable[[str], object] = lambda _: None
        """Called with the value before each charge; it may raise."""
        self.after: Callable[[str], object] = lambda _: None
        """Called with the value after each charge; it may raise."""

    def charge(self, key: str, value: bytes) -> str:
        self.keys.append(key)
        self.before(value.decode())
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, b"%s %s\n" % (value, key.encode()))
        os.close(descriptor)
        self.after(value.decode())
        return f"charge of {value.decode()}"

    def count(self, value: str) -> int:
        """How often a value was charged."""
        return self.charges().count(value)

    def charges(self) -> list[str]:
        """What was charged, in order."""
        if not self.path.exists():
            return []
        return [one.split()[0] for one in self.path.read_text().splitlines()]


class _Charging:
    name = "charge"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=3, wait=fixed(0.05), in_place=1)

    def __init__(self, provider: Provider, **declared: Any) -> None:
        self.provider = provider
        self.in_handle: Callable[[bytes], Awaitable[object] | object] = lambda _: None
        self.prepared: list[bytes] = []
        vars(self).update(declared)


class Charging(_Charging, Handler[bytes]):
    """Charges in `prepare`, and writes a line with the charge in `handle`."""

    shares_transaction = True  # what tests wait for in `handle` has no effect

    @step
    async def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return await asyncio.to_thread(self.provider.charge, key, value)

    async def prepare(self, event: bytes, effects: Effects) -> None:
        self.prepared.append(event)
        await effects.run(self.charge, event)

    async def handle(self, event: bytes, context: Context) -> None:
        made = line(context)
        made.message_id = context.done(self.charge)
        context.session.add(made)
        found = self.in_handle(event)
        if isinstance(found, Awaitable):
            await found


class PlainCharging(_Charging, Handler[bytes]):
    """The same in threads."""

    @step
    def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)

    def prepare(self, event: bytes, effects: PlainEffects) -> None:
        self.prepared.append(event)
        effects.run(self.charge, event)

    def handle(self, event: bytes, context: Context[Session]) -> None:
        made = line(context)
        made.message_id = context.done(self.charge)
        context.session.add(made)
        self.in_handle(event)


class Asking(Charging):
    """Asks the provider before it calls again."""

    @step(deadline=30)
    async def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)

    @charge.confirm
    async def find_charge(self, key: IdempotencyKey, value: bytes) -> AlreadyDone | None:
        self.provider.asked.append(key)
        return AlreadyDone("found") if self.provider.charges() else None


class Refusing(Charging):
    """Leaves a call in doubt to people."""

    @step(in_doubt="dead-letter")
    async def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)


class PlainAsking(PlainCharging):
    """Asks the provider, in threads."""

    @step(deadline=30)
    def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)

    @charge.confirm
    def find_charge(self, key: IdempotencyKey, value: bytes) -> AlreadyDone | None:
        self.provider.asked.append(key)
        return AlreadyDone("found") if self.provider.charges() else None


class PlainRefusing(PlainCharging):
    """Leaves a call in doubt to people, in threads."""

    @step(in_doubt="dead-letter")
    def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)


class _InHandle:
    """Charges within `handle`."""

    prepare = None
    charge: Any

    async def handle(self, event: bytes, context: Context) -> None:
        made = line(context)
        made.message_id = await context.run(self.charge, event)
        context.session.add(made)


class ChargingInHandle(_InHandle, Charging):  # type: ignore[misc]
    """Calls again where a call is in doubt."""

    charge = Charging.charge


class AskingInHandle(_InHandle, Asking):  # type: ignore[misc]
    """Asks the provider before it calls again."""

    charge = Asking.charge


class RefusingInHandle(_InHandle, Refusing):  # type: ignore[misc]
    """Leaves a call in doubt to people."""

    charge = Refusing.charge


KINDS = (Charging, PlainCharging)


@pytest.fixture
async def stage(each_url: str) -> AsyncIterator[MemoryStage]:
    """A broker with two partitions, and a database of each kind."""
    async with opened(each_url, partitions=2) as made:
        yield made


@pytest.fixture
def provider(tmp_path: Path) -> Provider:
    return Provider(tmp_path / "charges")


def rejects(event: bytes) -> None:
    """Reject each message; for `in_handle`."""
    raise Reject("as asked")


async def begun_elsewhere(stage: MemoryStage, handler: Any, number: int, value: bytes, *, seconds: float) -> str:
    """Record that another worker has begun a message's step with this many seconds left; return its key."""
    declared = declare(handler)
    found = declared.identity.find(Message(TOPIC, 0, number, None, value, (("id", b"%d" % number),)), value)
    assert found is not None
    arguments = fingerprint(declared.steps["charge"], (value,), {})

    def work(session: Session) -> None:
        dialect = dialect_for(session.connection().dialect.name, DEFAULT_TABLES)
        consumer = session.execute(select(CONSUMERS.c.id).where(CONSUMERS.c.name == "charge")).scalar_one_or_none()
        if consumer is None:
            consumer = 1
            values = {"id": 1, "name": "charge", "group_name": "charge", "topics": '["t"]'}
            session.execute(insert(CONSUMERS).values(values))
        row = {"consumer": consumer, "digest": found.digest, "step": "charge", "state": "started", "owner": b"o" * 16}
        session.execute(
            insert(STEPS).values(**row, arguments=arguments, calls=1, deadline_at=dialect.in_seconds(seconds))
        )

    await stage.database.run(work)
    return IdempotencyKey.of("charge", found.digest, "charge", 1)


async def rows(stage: MemoryStage, table: Table = STEPS) -> list[Any]:
    """The rows of a table of ours: the record of steps."""
    return await stage.database.run(lambda s: list(s.execute(select(table))))


async def until_done(stage: MemoryStage, run: Run, count: int) -> list[Line]:
    """Wait for so many lines, as long as no message waits for a step that seems to be under way elsewhere."""
    return await stage.until_written(run, count, never=StepAwaited)


async def until(stage: MemoryStage, run: Run, table: Table, holds: Callable[[list[Any]], bool]) -> list[Any]:
    """Wait until a table's rows are as wanted."""
    begun = time.monotonic()
    while not holds(found := await rows(stage, table)):
        if run.task.done():
            run.task.result()
        assert time.monotonic() < begun + 120, f"{found}; last events: {run.events[-5:]}"
        await pause(begun)
    return found


class Refunding(Charging):
    """Reserves and then charges; both can be undone. What is undone is written beside the charges."""

    undo_fails: Callable[[str], object] = staticmethod(lambda _: None)

    @step
    async def reserve(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, b"reserved-" + value)

    @reserve.undo(retry=Retry(attempts=3, wait=fixed(0.05)))
    async def release(self, key: IdempotencyKey, done: str, value: bytes) -> None:
        self.undo_fails("release")
        self.provider.charge(key, b"released-" + value)

    @step
    async def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)

    @charge.undo(retry=Retry(attempts=3, wait=fixed(0.05)))
    async def refund(self, key: IdempotencyKey, done: str, value: bytes) -> None:
        assert done == f"charge of {value.decode()}"
        self.undo_fails("refund")
        self.provider.charge(key, b"refunded-" + value)

    async def prepare(self, event: bytes, effects: Effects) -> None:
        await effects.run(self.reserve, event)
        await effects.run(self.charge, event)


class PlainRefunding(PlainCharging):
    """The same in threads."""

    undo_fails: Callable[[str], object] = staticmethod(lambda _: None)

    @step
    def reserve(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, b"reserved-" + value)

    @reserve.undo(retry=Retry(attempts=3, wait=fixed(0.05)))
    def release(self, key: IdempotencyKey, done: str, value: bytes) -> None:
        self.undo_fails("release")
        self.provider.charge(key, b"released-" + value)

    @step
    def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)

    @charge.undo(retry=Retry(attempts=3, wait=fixed(0.05)))
    def refund(self, key: IdempotencyKey, done: str, value: bytes) -> None:
        assert done == f"charge of {value.decode()}"
        self.undo_fails("refund")
        self.provider.charge(key, b"refunded-" + value)

    def prepare(self, event: bytes, effects: PlainEffects) -> None:
        effects.run(self.reserve, event)
        effects.run(self.charge, event)
