"""One process of the shop: `python -m tests.shop.parts web PORT`, `worker`, or `outside DIRECTORY HTTP SMTP SEED`."""

import asyncio
import logging
import os
import sys
import threading
import time
from pathlib import Path

import uvicorn
from sqlalchemy.ext.asyncio import create_async_engine

from consumerkit import failpoints
from consumerkit.monitoring import Metrics
from examples.shop import web, worker
from examples.shop.outside import Faults, Outside


async def serve(port: int) -> None:
    """Serve the page and the endpoints."""
    engine = create_async_engine(os.environ["CONSUMERKIT_DATABASE"])
    app = web.made(engine, Metrics(), topic_prefix=os.environ["CONSUMERKIT_TOPIC_PREFIX"])
    await uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning")).serve()


async def work() -> None:
    """Run the four handlers."""
    failpoints.arm()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    async with worker.worker() as made:
        await made.run(asyncio.Event())


async def stand_outside(directory: Path, http: int, smtp: int, seed: int) -> None:
    """Be the provider and the mail server."""
    servers = await Outside(directory, Faults(seed=seed)).serve(http, smtp)
    await asyncio.gather(*[one.serve_forever() for one in servers])


def end_with(parent: int) -> None:
    """End this process once its starter is gone, which may have been killed itself."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(what: str, *given: str) -> None:
    """Run one of them until it is killed."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    if what == "web":
        asyncio.run(serve(int(given[0])))
    elif what == "worker":
        asyncio.run(work())
    else:
        http, smtp, seed = map(int, given[1:])
        asyncio.run(stand_outside(Path(given[0]), http, smtp, seed))


if __name__ == "__main__":
    main(*sys.argv[1:])
