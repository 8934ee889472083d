"""The broker's position: corrected after a late answer of an earlier assignment has moved it back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from consumerkit import Context, Handler, Worker, header
from consumerkit.engine.partitions import committer
from consumerkit.message import TopicPartition
from consumerkit.storage import schema
from consumerkit.transports.memory import Memory, MemoryBroker

PLACE = TopicPartition("payments", 0)


class Take(Handler[bytes]):
    name = "take"
    topic = "payments"
    message_id = header("message-id")

    async def handle(self, event: bytes, context: Context) -> None:
        pass


async def until_committed(broker: MemoryBroker, offset: int) -> None:
    for _ in range(6000):
        if broker.committed("take").get(PLACE) == offset:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not {offset} but {broker.committed('take')}")


async def test_an_offset_that_went_back_behind_an_idle_worker_comes_right_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "REPEATED_EVERY", 0.5)
    monkeypatch.setattr(committer, "CHECKED_EVERY", 0.1)
    broker = MemoryBroker(topics={"payments": 1})
    for number in range(3):
        broker.append("payments", b"", headers=(("message-id", str(number).encode()),))
    worker = Worker(database=f"sqlite:///{tmp_path}/shop.db", kafka=Memory(broker), handlers=[Take()])
    await worker.database.run(schema.apply)
    async with worker:
        await until_committed(broker, 3)
        broker.group("take").offsets[PLACE] = 1
        await until_committed(broker, 3)


async def test_a_cancellation_that_comes_with_a_wake_ends_it() -> None:
    class Nothing:
        def __init__(self) -> None:
            self.commit_due = asyncio.Event()

        def __iter__(self) -> Any:
            return iter(())

        def owned(self) -> list[Any]:
            return []

    nothing: Any = Nothing()
    keeper = committer.Committer(nothing, nothing, nothing, nothing)
    task = asyncio.create_task(keeper.run())
    await asyncio.sleep(0.05)
    nothing.commit_due.set()
    await asyncio.sleep(0)  # its wait is over, but it has not run yet
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=60)
    assert done
