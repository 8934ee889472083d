"""The keys that are in use in this process: who waits for one of them needs no connection for that."""

from __future__ import annotations

import asyncio

from consumerkit.concurrency import wait_until_set


class InFlight:
    """The digests of keys whose requests are being handled here."""

    def __init__(self) -> None:
        self._running: dict[bytes, asyncio.Event] = {}

    async def enter(self, digest: bytes, within: float) -> bool:
        """Wait until a key is not in use here, and take it; return whether that was in time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + within
        while (ended := self._running.get(digest)) is not None:
            if not await wait_until_set(ended, max(0.0, end - loop.time())):
                return False
        self._running[digest] = asyncio.Event()
        return True

    def leave(self, digest: bytes) -> None:
        """Let the next one have the key."""
        if (ended := self._running.pop(digest, None)) is not None:
            ended.set()
