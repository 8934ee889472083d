"""Testing a handler: the real worker, on the broker in memory and a SQLite file.

`pytest examples/09_test_with_memory.py`
"""

import asyncio
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from consumerkit import Context, Handler, TopicPartition, Worker, header
from consumerkit.storage import schema
from consumerkit.transports.memory import Memory, MemoryBroker
from examples.stage import Account, Base


class Opened(BaseModel):
    account_id: str
    balance: int


class OpenAccount(Handler[Opened]):
    name = "open-accounts"
    topic = "accounts.opened"
    message_id = header("message-id")

    async def handle(self, event: Opened, context: Context) -> None:
        context.session.add(Account(id=event.account_id, balance=event.balance))


def make_tables(session: Session) -> None:
    schema.apply(session)
    Base.metadata.create_all(session.connection())


def balances(session: Session) -> dict[str, int]:
    return {name: balance for name, balance in session.execute(select(Account.id, Account.balance))}  # noqa: C416


async def handle_all(broker: MemoryBroker, file: Path) -> dict[str, int]:
    """Run a worker until the broker has nothing more for it; return the balances."""
    worker = Worker(database=f"sqlite:///{file}", kafka=Memory(broker), handlers=[OpenAccount()])
    await worker.database.run(make_tables)
    ends = {TopicPartition(m.topic, m.partition): m.offset + 1 for m in broker.records("accounts.opened")}
    async with worker:
        for _ in range(1000):
            if all(broker.committed("open-accounts").get(place) == end for place, end in ends.items()):
                break
            await asyncio.sleep(0.01)
        return await worker.database.run(balances)


def test_an_account_that_is_announced_twice_is_opened_once(tmp_path: Path) -> None:
    broker = MemoryBroker(topics={"accounts.opened": 3})
    for partition in (0, 0, 2):
        broker.append(
            "accounts.opened",
            b'{"account_id": "alice", "balance": 5}',
            headers=(("message-id", b"open-alice"),),
            partition=partition,
        )
    assert asyncio.run(handle_all(broker, tmp_path / "test.db")) == {"alice": 5}


def test_a_message_that_is_not_json_opens_nothing(tmp_path: Path) -> None:
    broker = MemoryBroker(topics={"accounts.opened": 1})
    broker.append("accounts.opened", b"{", headers=(("message-id", b"open-bob"),))
    assert asyncio.run(handle_all(broker, tmp_path / "test.db")) == {}
