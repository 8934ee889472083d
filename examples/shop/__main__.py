"""The whole shop in one process, on a broker in memory and a SQLite file: `python -m examples.shop`, then a browser."""

import argparse
import asyncio
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from starlette.applications import Starlette

from consumerkit.settings import Settings
from consumerkit.storage import schema
from consumerkit.transports.memory import Memory, MemoryBroker
from examples.shop import web, worker
from examples.shop.outside import Faults, Outside
from examples.shop.tables import Base, Item

GOODS = (("green", 750, 1_000), ("black", 600, 1_000), ("rare", 4_800, 3))


def stocked(session: Session, goods: Sequence[tuple[str, int, int]]) -> None:
    """Make all tables, and fill the stock."""
    schema.apply(session)
    Base.metadata.create_all(session.connection())
    session.add_all([Item(name=name, cents=cents, left=left) for name, cents, left in goods])


@asynccontextmanager
async def opened(
    directory: Path, faults: Faults, port: int = 0, goods: Sequence[tuple[str, int, int]] = GOODS
) -> AsyncGenerator[str]:
    """Run page, worker, provider and mail server until the block ends; yields the page's URL."""
    database = f"sqlite:///{directory}/shop.db"
    outside = Outside(directory, faults)
    servers = await outside.serve()
    http, smtp = (one.sockets[0].getsockname()[1] for one in servers)
    broker = MemoryBroker(topics={"shop.placed": 4, "shop.reserved": 4, "shop.paid": 4})
    settings = Settings(database=database)
    engine = create_async_engine(database.replace("sqlite:", "sqlite+aiosqlite:"))
    try:
        async with worker.opened(Memory(broker), f"http://127.0.0.1:{http}", smtp, settings) as made:
            await made.database.run(lambda session: stocked(session, goods))
            async with made, served(web.made(engine), port) as url:
                yield url
    finally:
        await engine.dispose()
        for one in servers:
            one.close()


@asynccontextmanager
async def served(app: Starlette, port: int) -> AsyncGenerator[str]:
    """Serve an application until the block ends; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0.01)
    try:
        if not serving.done():  # else the port is taken, and the server has said so
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


async def main(port: int) -> None:
    """Serve until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="consumerkit-shop-") as directory:
        async with opened(Path(directory), Faults(), port) as url:
            print(f"The shop is open: {url}  (Ctrl-C closes it)", flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.shop", description="Open the shop until Ctrl-C.")
    parser.add_argument("--port", type=int, default=8000)
    try:
        asyncio.run(main(parser.parse_args().port))
    except KeyboardInterrupt:
        print("closed")
