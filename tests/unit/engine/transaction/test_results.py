"""A result that `on_result` counts as a failure is rolled back, tried again, and dead-lettered like any failure."""

import asyncio
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, insert, select
from sqlalchemy.orm import Session

from consumerkit import Context, Handler, Retry, Worker, fixed, header
from consumerkit.storage import schema
from consumerkit.transports.memory import Memory, MemoryBroker

EFFECTS = Table("effects", MetaData(), Column("attempt", Integer))


class Settle(Handler[bytes]):
    name = "settle"
    topic = "payments"
    message_id = header("message-id")
    retry = Retry(attempts=3, wait=fixed(0.01), in_place=3, on=(OSError,), on_result=lambda result: result == "pending")

    async def handle(self, event: bytes, context: Context) -> str:
        await context.session.execute(insert(EFFECTS).values(attempt=context.attempt))
        return "settled" if context.attempt >= int(event) else "pending"


def make_tables(session: Session) -> None:
    schema.apply(session)
    EFFECTS.metadata.create_all(session.connection())


async def _run(file: Path) -> tuple[list[int], list[tuple[Any, ...]]]:
    """Run a worker until it has finished; return the effects and the dead letters."""
    broker = MemoryBroker(topics={"payments": 1})
    for number, value in enumerate((b"2", b"9", b"1")):
        broker.append("payments", value, headers=(("message-id", str(number).encode()),))
    worker = Worker(database=f"sqlite:///{file}", kafka=Memory(broker), handlers=[Settle()])
    await worker.database.run(make_tables)
    dead = worker.tables.dead_letters.c
    letters = select(dead.message_id, dead.reason, dead.attempts, dead.error_type, dead.error)
    async with worker:
        for _ in range(6000):
            if list(broker.committed("settle").values()) == [3]:
                break
            await asyncio.sleep(0.01)
        effects = await worker.database.run(lambda session: list(session.scalars(select(EFFECTS.c.attempt))))
        return sorted(effects), await worker.database.run(lambda session: [tuple(r) for r in session.execute(letters)])


def test_an_unsatisfying_result_is_a_failed_attempt(tmp_path: Path) -> None:
    effects, dead = asyncio.run(_run(tmp_path / "shop.db"))
    assert effects == [1, 2]
    words = "handle returned str, and on_result counts it as a failure"
    assert dead == [("1", "exhausted", 3, "consumerkit.errors.Unsatisfied", words)]
