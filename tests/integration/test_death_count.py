"""How many owners of a partition died without progress: what an owner only repeats is none."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import update

from consumerkit import Context, Handler, Worker, header
from consumerkit.storage import schema
from consumerkit.transports.memory import Memory, MemoryBroker

KNOWN = 4


class Settle(Handler[bytes]):
    name = "settle"
    topic = "payments"
    message_id = header("message-id")
    batch_size = 2
    concurrency = 1

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def handle(self, event: bytes, context: Context) -> None:
        if event == b"kills":
            self.reached.set()
            await self.goes_on.wait()


def _worker(url: str, broker: MemoryBroker) -> tuple[Worker, Settle]:
    handler = Settle()
    return Worker(database=url, kafka=Memory(broker), handlers=[handler]), handler


async def _died(url: str, broker: MemoryBroker, deaths: int) -> None:
    """Let the database look as after an owner that died: it committed messages, and neither mark nor offset."""
    worker, _ = _worker(url, broker)
    await worker.database.run(lambda session: schema.apply(session))
    async with worker:
        for _ in range(6000):
            if list(broker.committed("settle").values()) == [KNOWN]:
                break
            await asyncio.sleep(0.01)
    progress = worker.tables.partition_progress
    rows = update(progress).values(deaths=deaths - 1, given_back=False, mark=0)
    await worker.database.run(lambda session: session.execute(rows))
    await worker.database.dispose()
    broker.group("settle").offsets.clear()


def _deaths(file: Path) -> int:
    """Read the count beside the transaction under way, which has SQLite's one writer."""
    with closing(sqlite3.connect(file)) as connection:
        (deaths,) = connection.execute("SELECT deaths FROM consumerkit_partition_progress").fetchone()
    return int(deaths)


@pytest.mark.parametrize(
    "between, deaths", [pytest.param([], 2, id="only-known"), pytest.param([b"new"] * 2, 0, id="two-new-ones")]
)
async def test_only_a_new_outcome_ends_the_count(tmp_path: Path, between: list[bytes], deaths: int) -> None:
    broker, file = MemoryBroker(topics={"payments": 1}), tmp_path / "shop.db"
    url = f"sqlite:///{file}"
    for number in range(KNOWN):
        broker.append("payments", b"known", headers=(("message-id", str(number).encode()),))
    await _died(url, broker, deaths=2)
    for number, value in enumerate([*between, b"kills"], start=KNOWN):
        broker.append("payments", value, headers=(("message-id", str(number).encode()),))
    worker, handler = _worker(url, broker)
    async with worker:
        await asyncio.wait_for(handler.reached.wait(), 60)
        counted = _deaths(file)
        handler.goes_on.set()
    assert counted == deaths
