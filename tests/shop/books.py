"""The books: what customers, provider and mail server saw, against what the shop's tables say."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from examples.shop.outside import lines_of
from examples.shop.tables import Item, Order, Points
from tests.shop.customers import Clicked


@dataclass(frozen=True)
class Line:
    """One line of the books.

    Attributes:
        what: What was looked at.
        found: What was found.
        wrong: What is not as it must be, such as order IDs; nothing where all is well.
    """

    what: str
    found: str
    wrong: Sequence[str] = ()


@dataclass(frozen=True)
class Seen:
    """What the other side has written down, by order: nothing of it has a unique key."""

    charges: dict[str, list[tuple[str, str, int]]]
    refunds: Counter[str]
    mails: Counter[str]
    faults: Counter[str]

    @classmethod
    def read(cls, directory: Path) -> "Seen":
        """Read the files."""
        charges = defaultdict[str, list[tuple[str, str, int]]](list)
        for line in lines_of(directory / "charges"):
            key, number, order, cents = line.split()
            charges[order].append((key, number, int(cents)))
        refunds = Counter(line.split()[1] for line in lines_of(directory / "refunds"))
        mails = Counter(line.split()[1] for line in lines_of(directory / "mails"))
        return cls(charges, refunds, mails, Counter(lines_of(directory / "faults")))


def check(engine: Engine, directory: Path, clicked: Sequence[Clicked], stock: dict[str, int]) -> Iterator[Line]:
    """Compare all records; return a line for each fault."""
    seen = Seen.read(directory)
    with Session(engine) as session:
        orders = list(session.scalars(select(Order)))
        left = {item.name: item.left for item in session.scalars(select(Item))}
        points = {one.customer: one.total for one in session.scalars(select(Points))}
        unsettled = waiting(session)
    yield from _clicks(clicked, orders)
    yield from _money(seen, orders)
    yield _mails(seen, orders)
    paid = [order for order in orders if order.status == "paid"]
    expected = stock.copy()
    for order in paid:
        expected[order.item] -= order.quantity
    wrong = [f"{name}: {left[name]} and not {expected[name]}" for name in stock if left[name] != expected[name]]
    wrong += [f"{name} was oversold" for name in stock if left[name] < 0]
    refused = sum(order.status == "refused" for order in orders)
    yield Line("the stock is right", f"{sum(left.values()):,} left; {refused:,} orders refused as sold out", wrong)
    due = Counter[str]()
    for order in paid:
        due[order.customer] += order.cents // 100
    wrong = [name for name in {*due, *points} if due[name] != points.get(name, 0)]
    yield Line("the points are right", f"{sum(points.values()):,} points of {len(points):,} customers", wrong)
    yield Line(
        "nothing is left behind", "no message, no outbox row, no undo", [f"{unsettled}"] if any(unsettled) else ()
    )


def _clicks(clicked: Sequence[Clicked], orders: Sequence[Order]) -> Iterator[Line]:
    unlike = [one.answers[0][1] for one in clicked if len(set(one.answers)) != 1 or one.answers[0][0] != 202]
    clicks = sum(len(one.answers) for one in clicked)
    yield Line("every click of an order is answered alike", f"{clicks:,} clicks, {len(clicked):,} answers", unlike)
    known = {json.loads(one.answers[0][1])["message_id"]: one for one in clicked}
    wrong = [order.id for order in orders if order.id not in known] + list(known.keys() - {one.id for one in orders})
    yield Line("each five clicks are one order", f"{len(orders):,} orders", wrong)
    by_id = {order.id: order for order in orders}
    told = {name: one.cancelled for name, one in known.items() if one.cancelled is not None and name in by_id}
    wrong = [name for name, status in told.items() if by_id[name].status != status]
    counted = Counter(told.values())
    yield Line("who cancelled was told the truth", ", ".join(f"{n:,} {name}" for name, n in counted.items()), wrong)


def _money(seen: Seen, orders: Sequence[Order]) -> Iterator[Line]:
    once, none, returned, wrong = 0, 0, 0, list[str]()
    for order in orders:
        charges = seen.charges.get(order.id, [])
        refunds = sum(seen.refunds[number] for _, number, _ in charges)
        if order.status == "paid":
            well = len(charges) == 1 and refunds == 0 and charges[0][2] == order.cents
            once += well
        else:
            well = len(charges) == refunds <= 1 and order.status in ("refused", "cancelled")
            returned, none = returned + (refunds > 0), none + (refunds == 0)
        if not well:
            wrong.append(f"{order.id} {order.status}: {len(charges)} charges, {refunds} refunds")
    found = f"{once:,} charged once, {returned:,} charged and refunded, {none:,} never charged"
    yield Line("each order has one charge, or none, or it is refunded", found, wrong)
    strange = seen.charges.keys() - {order.id for order in orders}
    yield Line("no money without an order", f"{sum(map(len, seen.charges.values())):,} charges in all", sorted(strange))


def _mails(seen: Seen, orders: Sequence[Order]) -> Line:
    expected = {order.id for order in orders if order.status == "paid"}
    wrong = [one for one in expected | seen.mails.keys() if seen.mails[one] != (one in expected)]
    return Line("one mail for each paid order", f"{seen.mails.total():,} mails", wrong)


def waiting(session: Session) -> tuple[int, int, int, int, int, int]:
    """Return how much is not settled: orders on their way, outbox, parked rows, refunds, payments, mails and points."""
    moving = session.scalars(select(func.count()).where(Order.status.in_(["placed", "reserved"]))).one()
    outbox, parked = (
        session.scalar(text(f"SELECT count(*) FROM consumerkit_{name}_messages")) or 0 for name in ("outbox", "parked")
    )
    undos = session.scalar(text("SELECT count(*) FROM consumerkit_message_steps WHERE state = 'undoing'")) or 0
    done = dict[str, int](
        session.execute(
            text(
                "SELECT name, count(*) FROM consumerkit_processed_messages m JOIN consumerkit_consumers c "
                "ON c.id = m.consumer WHERE outcome <> 2 GROUP BY name"
            )
        ).all()
    )
    results = dict[str, int](
        session.execute(
            text(
                "SELECT result, count(*) FROM consumerkit_message_results r JOIN consumerkit_consumers c "
                "ON c.id = r.consumer WHERE name IN ('shop-stock', 'shop-payment') GROUP BY result"
            )
        ).all()
    )
    paid = results.get('"paid"', 0)
    later = 2 * paid - done.get("shop-mail", 0) - done.get("shop-points", 0)
    payments = results.get('"reserved"', 0) - done.get("shop-payment", 0)
    return moving, outbox, parked, undos, payments, later
