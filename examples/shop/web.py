"""The web service: one page, two idempotent endpoints, and the status of an order."""

from pathlib import Path
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from consumerkit import outbox
from consumerkit.events import Observer
from consumerkit.http import Idempotency, accepted, status_route
from examples.shop.handlers import GivePoints, ReserveStock, SendMail, TakePayment
from examples.shop.tables import Item, Order, Placed

PAGE = Path(__file__).with_name("page.html").read_text()
COOKIE = "customer"


def customer(request: Request) -> str:
    """Tell who asks. A real shop has a login; here a cookie that cannot be guessed stands for it."""
    if not (name := request.cookies.get(COOKIE)):
        raise HTTPException(401, "open the shop's page first")
    return name


async def page(request: Request) -> Response:
    """Show the shop. The first visit brings the cookie."""
    answer = HTMLResponse(PAGE, headers={"Cache-Control": "no-store"})
    if COOKIE not in request.cookies:
        answer.set_cookie(COOKIE, uuid4().hex, httponly=True, samesite="strict")
    return answer


async def order_status(request: Request) -> Response:
    """Tell where an order stands."""
    order = await own_order(request, request.path_params["order_id"])
    if order is None:
        raise HTTPException(404)
    return JSONResponse({"order_id": order.id, "status": order.status}, headers={"Cache-Control": "no-store"})


async def is_theirs(request: Request, handler: str, message_id: str) -> bool:
    """Tell whether a message is of the caller's own order: its ID is the order's."""
    return await own_order(request, message_id) is not None


async def own_order(request: Request, order_id: str) -> Order | None:
    """Return an order of the caller's."""
    async with AsyncSession(request.app.state.engine) as session:
        found = await session.get(Order, order_id)
    return found if found is not None and found.customer == customer(request) else None


def made(engine: AsyncEngine, *observers: Observer, topic_prefix: str = "", interval: float = 0.5) -> Starlette:
    """Return the service on a database."""
    edge = Idempotency(database=engine, name="shop", observers=observers)

    @edge.idempotent(scope=customer)
    async def place(request: Request) -> Response:
        session, wanted = edge.session(request), await request.json()
        item = await session.get(Item, str(wanted.get("item")))
        quantity = wanted.get("quantity", 1)
        if item is None or not isinstance(quantity, int) or not 0 < quantity <= 10:
            raise HTTPException(400, "name an item of the shop, and a quantity from 1 to 10")
        placed = Placed(
            order_id=str(uuid4()),
            customer=customer(request),
            item=item.name,
            quantity=quantity,
            cents=item.cents * quantity,
        )
        values = placed.model_dump(exclude={"order_id"})
        session.add(Order(id=placed.order_id, status="placed", **values))
        # The order, its message, the key and the answer are committed together, or not at all.
        await outbox.publish(session, f"{topic_prefix}shop.placed", key=item.name, value=placed, id=placed.order_id)
        return accepted(request, ReserveStock, placed.order_id)

    @edge.idempotent(scope=customer)
    async def cancel(request: Request) -> Response:
        session = edge.session(request)
        order = await session.get(Order, request.path_params["order_id"], with_for_update=True)
        if order is None or order.customer != customer(request):
            raise HTTPException(404)
        if order.status == "reserved":
            item = await session.get_one(Item, order.item, with_for_update=True)
            item.left += order.quantity
        if order.status in ("placed", "reserved"):
            order.status = "cancelled"
        return JSONResponse({"order_id": order.id, "status": order.status})

    routes = [
        Route("/", page),
        Route("/orders", place, methods=["POST"]),
        Route("/orders/{order_id}", order_status),
        Route("/orders/{order_id}/cancel", cancel, methods=["POST"]),
        status_route(
            database=engine,
            handlers=[ReserveStock, TakePayment, SendMail, GivePoints],
            authorize=is_theirs,
            results=True,
            interval=interval,
        ),
    ]
    app = Starlette(routes=routes)
    app.state.engine = engine
    return app
