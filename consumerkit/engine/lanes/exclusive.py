"""Lets one piece of work run alone in the process, so that a crash has one suspect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Exclusive:
    """Shared by all lanes of all handlers in a process.

    Work that must be alone waits until all other work ends; other work then waits for it.
    """

    def __init__(self) -> None:
        self._running = 0
        self._attempts = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[None]:
        """Run the block, alone or beside others."""
        if alone:
            async with self._by_itself():
                yield
            return
        if self._attempts:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._attempts)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self._attempts:
                async with self._changed:
                    self._changed.notify_all()

    @asynccontextmanager
    async def _by_itself(self) -> AsyncIterator[None]:
        self._attempts += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._running)
                self._running += 1
            try:
                yield
            finally:
                self._running -= 1
        finally:
            self._attempts -= 1
            async with self._changed:
                self._changed.notify_all()
