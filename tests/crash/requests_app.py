"""A web service that is killed at a failpoint: `python -m tests.crash.requests_app DATABASE PORT_FILE`."""

import asyncio
import sys
from pathlib import Path

import uvicorn
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from consumerkit import failpoints, outbox
from consumerkit.http import Idempotency


class Base(DeclarativeBase): ...


class Effect(Base):
    """Append-only, and without a unique key: what happens twice is there twice."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


def made(edge: Idempotency) -> Starlette:
    """Return a service whose one endpoint writes an effect and a message."""

    @edge.idempotent(scope=lambda request: request.headers["caller"], wait=240)
    async def order(request: Request) -> Response:
        session = edge.session(request)
        effect = Effect(what="order")
        session.add(effect)
        await session.flush()
        await outbox.publish(session, "orders", value={"number": effect.id})
        return JSONResponse({"number": effect.id}, 201)

    return Starlette(routes=[Route("/orders", order, methods=["POST"])])


async def main(database: str, port_file: Path) -> None:
    """Serve until killed."""
    failpoints.arm()
    app = made(Idempotency(database=database, name="shop"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    await asyncio.to_thread(port_file.write_text, f"{port}\n")
    await serving


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
