"""A worker inside a web service: `async with worker` in the application's lifespan. It installs no signal handlers.

`application` is a bare ASGI application with a lifespan; frameworks call theirs the same way.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel
from sqlalchemy import select

from consumerkit import Context, Handler, Worker, header
from examples.stage import DATABASE, KAFKA, Account, Send, finished, prepare, progress, send, show

Event = MutableMapping[str, Any]


class Opened(BaseModel):
    account_id: str


class OpenAccount(Handler[Opened]):
    name = "open-accounts"
    topic = "accounts.opened"
    message_id = header("message-id")

    async def handle(self, event: Opened, context: Context) -> None:
        context.session.add(Account(id=event.account_id, balance=0))


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[OpenAccount()], observers=[progress])


@asynccontextmanager
async def lifespan() -> AsyncGenerator[None]:
    async with worker:
        yield


async def application(
    scope: Event, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
) -> None:
    assert scope["type"] == "lifespan"
    assert (await receive())["type"] == "lifespan.startup"
    async with lifespan():
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
    await send({"type": "lifespan.shutdown.complete"})


async def main() -> None:
    """Play the server: start the application up, let it serve, shut it down."""
    await prepare(worker)
    await send(worker, [Send("accounts.opened", f"open-{name}", name, {"account_id": name}) for name in ("a", "b")])
    to_application: asyncio.Queue[Event] = asyncio.Queue()
    from_application: asyncio.Queue[Event] = asyncio.Queue()
    running = asyncio.create_task(application({"type": "lifespan"}, to_application.get, from_application.put))
    await to_application.put({"type": "lifespan.startup"})
    assert (await from_application.get())["type"] == "lifespan.startup.complete"
    await finished(worker, 2)
    await show(worker, select(Account.id).order_by(Account.id))
    await to_application.put({"type": "lifespan.shutdown"})
    assert (await from_application.get())["type"] == "lifespan.shutdown.complete"
    await running


if __name__ == "__main__":
    asyncio.run(main())
    # a
    # b
