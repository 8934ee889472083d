"""The demo's worker processes, under a supervisor in its own process: it restarts what the demo kills."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from consumerkit.demo.scene import DemoScene
from consumerkit.observability.logs import configure
from consumerkit.supervisor import Channel, Lifeline, RestartBackoff, Supervisor

TARGET = "consumerkit.demo.shop:worker"
COUNT = 2
_QUICK_RESTARTS = RestartBackoff(first=0.2, most=0.5)


@asynccontextmanager
async def running(scene: DemoScene) -> AsyncIterator[None]:
    """Run the worker processes until the block ends; their log is in the demo's directory."""
    with Channel() as channel, scene.log.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "consumerkit.demo.workers",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **scene.environment, **channel.environment},
            pass_fds=channel.theirs,
            process_group=0,  # Ctrl-C must reach only the demo, which then stops the workers
        )
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()


def main() -> None:
    """Keep the worker processes running until SIGTERM, or until the demo is gone."""
    configure("text", "info")
    Lifeline().hold()
    command = [sys.executable, "-m", "consumerkit", "run", TARGET]
    sys.exit(asyncio.run(Supervisor(command, COUNT, backoff=_QUICK_RESTARTS).run()))


if __name__ == "__main__":
    main()
