"""`assert_idempotent` passes the shop's handlers beside their real mail server, and catches mail in `handle`."""

from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from sqlalchemy.orm import Session

from consumerkit import Context, Handler, header
from consumerkit.testing import assert_idempotent_async, message
from consumerkit.transports.base import Record
from examples.shop.handlers import GivePoints, ReserveStock, SendMail, TakePayment
from examples.shop.outside import NONE, Outside, lines_of
from examples.shop.services import TIMEOUT, MailService, PaymentProvider
from examples.shop.tables import Base, Item, Order, Placed

ORDERS = [
    Placed(order_id=f"o-{n}", customer=customer, item=item, quantity=1, cents=750)
    for n, (customer, item) in enumerate([("alice", "green"), ("bob", "rare"), ("carol", "rare"), ("alice", "green")])
]
CANCELLED = "o-3"
BY_ITEM: list[Record] = [message(one, id=one.order_id, key=one.item) for one in ORDERS]
BY_CUSTOMER: list[Record] = [message(one, id=one.order_id, key=one.customer) for one in ORDERS]


class Services:
    """The shop's mail server and provider, without faults of their own.

    Attributes:
        mails: The way to the mail server.
        provider: The provider's address.
    """

    def __init__(self, directory: Path, http: int, smtp: int) -> None:
        self.provider = f"http://127.0.0.1:{http}"
        self.mails = MailService("127.0.0.1", smtp, self.provider)
        self._directory = directory

    def happened(self) -> Counter[str]:
        """What they have done for which order, whatever the key was."""
        charges = [line.split() for line in lines_of(self._directory / "charges")]
        orders = {number: order for _, number, order, _ in charges}
        refunds = [orders[line.split()[1]] for line in lines_of(self._directory / "refunds")]
        found = Counter(f"mail about {line.split()[1]}" for line in lines_of(self._directory / "mails"))
        found.update(f"charge of {order}" for _, _, order, _ in charges)
        found.update(f"refund of {order}" for order in refunds)
        return found


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    servers = await Outside(tmp_path, NONE).serve()
    http, smtp = (one.sockets[0].getsockname()[1] for one in servers)
    yield Services(tmp_path, http, smtp)
    for server in servers:
        server.close()


def rows(session: Session, status: str) -> None:
    session.add_all([Item(name="green", cents=750, left=5), Item(name="rare", cents=750, left=1)])
    for one in ORDERS:
        now = "cancelled" if one.order_id == CANCELLED else status
        session.add(Order(id=one.order_id, **one.model_dump(exclude={"order_id"}), status=now))


async def test_the_stock_passes() -> None:
    """Two customers want the last rare one: its key keeps them in order, so the same one gets it in each run."""
    await assert_idempotent_async(ReserveStock(), BY_ITEM, metadata=Base.metadata, setup=partial(rows, status="placed"))


@pytest.mark.variant
async def test_the_payment_passes_and_refunds_what_was_cancelled(services: Services) -> None:
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        report = await assert_idempotent_async(
            TakePayment(PaymentProvider(services.provider, client)),
            BY_CUSTOMER,
            metadata=Base.metadata,
            setup=partial(rows, status="reserved"),
            effects=services.happened,
            dead=(CANCELLED,),
        )
    assert {"step_called", "before_commit", "dlq_produced_unacked", "undo_called", "undo_done"} <= set(report.killed)
    done = services.happened()
    assert done[f"refund of {CANCELLED}"] == done["charge of o-0"] == len(report.runs) + 1


@pytest.mark.variant
async def test_the_mail_passes(services: Services) -> None:
    report = await assert_idempotent_async(
        SendMail(services.mails), BY_CUSTOMER, metadata=Base.metadata, effects=services.happened
    )
    assert {"step_started", "step_called", "step_done", "before_commit", "after_commit"} <= set(report.killed)
    assert services.happened()["mail about o-0"] == len(report.runs) + 1


@pytest.mark.variant
async def test_the_points_pass() -> None:
    await assert_idempotent_async(GivePoints(), BY_CUSTOMER, metadata=Base.metadata)


class MailInHandle(Handler[Placed]):
    """The shop's mail without a step: the server is called while the transaction is open."""

    name = "shop-mail"
    topic = "shop.paid"
    message_id = header("message-id")

    def __init__(self, mails: MailService) -> None:
        self.mails = mails

    def handle(self, event: Placed, context: Context[Session]) -> str:
        return self.mails.send(context.message_id, event.customer, f"Thank you for order {event.order_id}.")


async def test_mail_in_handle_is_caught(services: Services) -> None:
    with pytest.raises(AssertionError) as raised:
        await assert_idempotent_async(
            MailInHandle(services.mails), BY_CUSTOMER, metadata=Base.metadata, effects=services.happened
        )
    text = str(raised.value)
    assert text.startswith("handler 'shop-mail' is not idempotent: ")
    assert "\nkilled at before_commit, then started again:\n  effect 'mail about o-0': expected 1, found 2\n" in text
    assert "move the call from handle into a step" in text
