"""From a click to its effect: a FastAPI endpoint, the outbox, a handler, and the status page that shows it."""

import asyncio
from typing import Annotated

import httpx
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from starlette.requests import Request
from starlette.responses import Response

from consumerkit import Context, Handler, Worker, header, outbox
from consumerkit.http import Idempotency, accepted, status_route
from consumerkit.http.fastapi import IdempotentRoute
from examples.stage import DATABASE, KAFKA, Payment, finished, prepare, progress


class Order(BaseModel):
    order_id: str
    amount: int


class Bill(Handler[Order]):
    name = "bill-clicks"
    topic = "orders.clicked"
    message_id = header("message-id")

    async def handle(self, event: Order, context: Context) -> int:
        context.session.add(Payment(id=event.order_id, account_id="alice", amount=event.amount))
        return event.amount


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[Bill()], observers=[progress])
engine = create_async_engine(DATABASE.replace("sqlite:", "sqlite+aiosqlite:"))
edge = Idempotency(database=engine, name="shop")
router = APIRouter(route_class=IdempotentRoute)


def user(name: Annotated[str, Header(alias="user")] = "") -> str:  # your own authentication
    if not name:
        raise HTTPException(401)
    return name


def may_see(request: Request, handler: str, message_id: str) -> bool:
    return request.headers.get("user") == "alice"


@router.post("/orders", status_code=202)
@edge.idempotent(scope=user)
async def place(order: Order, request: Request, session: Annotated[AsyncSession, Depends(edge.session)]) -> Response:
    # Committed with the key and the answer, so that five clicks are one message.
    message_id = await outbox.publish(session, "orders.clicked", key=order.order_id, value=order)
    return accepted(request, Bill, message_id)


app = FastAPI()
app.include_router(router)
app.router.routes.append(status_route(database=engine, handlers=[Bill], authorize=may_see, results=True, interval=0.1))


async def click(client: httpx.AsyncClient, order: Order) -> httpx.Response:
    return await client.post("/orders", json=order.model_dump(), headers={"Idempotency-Key": f'"{order.order_id}"'})


async def main() -> None:
    await prepare(worker)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", headers={"user": "alice"}) as client:
        answers = await asyncio.gather(*[click(client, Order(order_id="o-1", amount=7)) for _ in range(5)])
        print({answer.status_code for answer in answers}, len({answer.content for answer in answers}), "answer")
        print((await click(client, Order(order_id="o-1", amount=8))).status_code)
        url = answers[0].headers["location"]
        print((await client.get(url)).json()["state"])
        async with worker:
            await finished(worker, 1)
            status = (await client.get(url)).json()
            print(status["state"], status["result"])
            print((await client.get(url, headers={"user": "bob"})).status_code)
            payments = await worker.database.run(lambda session: session.scalar(select(func.count(Payment.id))))
            print(payments, "payment")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
    # {202} 1 answer
    # 422
    # unknown
    # processed 7
    # 404
    # 1 payment
