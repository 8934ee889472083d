"""The keys that are in use in this process: a request waits for one of them without a connection."""

from __future__ import annotations

import asyncio

from consumerkit.concurrency import wait_until_set


class InFlight:
    """The digests of keys whose requests this process handles."""

    def __init__(self) -> None:
        self._running: dict[bytes, asyncio.Event] = {}

    async def enter(self, digest: bytes, within: float) -> float | None:
        """Wait until a key is free in this process, and take it; return the seconds waited, or None after a timeout.

        A free key is taken at once, after 0 seconds.
        """
        if digest not in self._running:
            within = 0.0
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while (ended := self._running.get(digest)) is not None:
            if not await wait_until_set(ended, max(0.0, begun + within - loop.time())):
                return None
        self._running[digest] = asyncio.Event()
        return loop.time() - begun if within else 0.0

    def leave(self, digest: bytes) -> None:
        """Release the key to the next request."""
        if (ended := self._running.pop(digest, None)) is not None:
            ended.set()
