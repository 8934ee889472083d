"""The shop's handlers take effect once, whatever comes twice: each message in copies, and all of them once more."""

import asyncio
import json
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from consumerkit import events
from consumerkit.settings import Settings
from consumerkit.transports.memory import Memory, MemoryBroker
from examples.shop import worker
from examples.shop.__main__ import stocked
from examples.shop.outside import NONE, Outside, lines_of
from examples.shop.tables import Item, Order, Placed
from tests.shop.books import check, waiting
from tests.shop.customers import Clicked

TOPICS = ("shop.placed", "shop.reserved", "shop.paid")
STOCK = {"green": 5, "rare": 1}
ORDERS = [("o-1", "green"), ("o-2", "rare"), ("o-3", "rare"), ("o-4", "green"), ("cancelled", "green")]
"""The second rare one finds none left; the last one is cancelled while its payment is under way."""
COPIES = 3


def send(broker: MemoryBroker, topic: str, order: str, item: str) -> None:
    placed = Placed(order_id=order, customer="alice", item=item, quantity=1, cents=750)
    for _ in range(COPIES):
        headers = (("message-id", order.encode()),)
        broker.append(topic, placed.model_dump_json().encode(), key=item.encode(), headers=headers)


async def test_what_comes_twice_is_charged_mailed_and_counted_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    servers = await Outside(tmp_path, NONE).serve()
    http, smtp = (one.sockets[0].getsockname()[1] for one in servers)
    broker = MemoryBroker(topics=dict.fromkeys(TOPICS, 2))
    engine = create_engine(url)
    with Session(engine) as session, session.begin():
        stocked(session, [(name, 750, left) for name, left in STOCK.items()])
        for order, item in ORDERS:
            status = "cancelled" if order == "cancelled" else "placed"
            session.add(Order(id=order, customer="alice", item=item, quantity=1, cents=750, status=status))
    for order, item in ORDERS:
        send(broker, "shop.reserved" if order == "cancelled" else "shop.placed", order, item)
    seen: list[events.Event] = []

    def done() -> int:
        told = [one for one in seen if isinstance(one, events.GroupCommitted)]
        return sum(one.processed + one.duplicates + one.duplicates_of_dead + one.dead for one in told)

    def is_settled() -> bool:
        with Session(engine) as session:
            return waiting(session)[:3] == (0, 0, 0)

    async def until(count: int) -> None:
        while done() < count or not is_settled():  # noqa: ASYNC110 - what is awaited is in the database
            await asyncio.sleep(0.02)

    async with (
        asyncio.timeout(240),
        worker.opened(Memory(broker), f"http://127.0.0.1:{http}", smtp, Settings(database=url)) as made,
    ):
        made.observe(seen.append)
        async with made:
            # Stock and payment with their copies, three payments of the others, and three mails and points.
            first = len(ORDERS) * COPIES + 3 + 3 + 3
            await until(first)
            everything = [(topic, one) for topic in TOPICS for one in broker.records(topic)]
            for topic, one in everything:
                broker.append(topic, one.value, key=one.key, headers=one.headers)
            await until(first + len(everything) + len(broker.records("shop.paid")) // 2)
    clicked = [Clicked("alice", item, 1, [(202, json.dumps({"message_id": order}))]) for order, item in ORDERS]

    def wrong() -> set[str]:
        # Whose orders were put into the topic for payments have no result of the stock's handler.
        lines = check(engine, tmp_path, clicked, STOCK)
        return {line.what for line in lines if line.wrong} - {"nothing is left behind"}

    assert wrong() == set()
    counted = {kind: len(lines_of(tmp_path / kind)) for kind in ("charges", "refunds", "mails")}
    assert counted == {"charges": 4, "refunds": 1, "mails": 3}
    for kind in ("charges", "mails"):  # and the books would tell
        with (tmp_path / kind).open("a") as file:
            file.write(lines_of(tmp_path / kind)[0] + "\n")
    clicked[0].answers.append((202, "another answer"))
    with Session(engine) as session, session.begin():
        session.get_one(Item, "green").left -= 1
    assert wrong() == {
        "every click of an order is answered alike",
        "each order has one charge, or none, or it is refunded",
        "one mail for each paid order",
        "the stock is right",
    }
    for server in servers:
        server.close()
    engine.dispose()
