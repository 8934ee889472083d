"""Waits, outside any transaction, while trouble lasts that no message caused."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from consumerkit import events
from consumerkit.concurrency import wait_until_set
from consumerkit.engine.transaction import failures
from consumerkit.events import Announcer

FIRST_WAIT: Final = 0.1
LONGEST_WAIT: Final = 30.0


class Interrupted(Exception):
    """The lane must give up its unfinished work: it loses the partition, or the worker stops."""


class Backoff:
    """Waits longer and longer while trouble lasts, and gives up only when the lane must stop.

    Args:
        announce: Announces trouble and its end.

    Attributes:
        interrupted: Set while the lane must give up its messages.
    """

    def __init__(self, announce: Announcer) -> None:
        self._announce = announce
        self.interrupted = asyncio.Event()
        self._since: dict[str, float] = {}
        self._times = 0

    async def wait(self, where: str, error: BaseException) -> None:
        """Announce trouble, and wait.

        Raises:
            Interrupted: The lane must give up.
        """
        self._since.setdefault(where, time.monotonic())
        wait = self._longer()
        described = failures.described(error)
        self._announce(events.Trouble(where=where, error=described, wait=wait))
        await self.pause(wait)

    async def pause_handler(self, error: BaseException) -> None:
        """Announce that the handler cannot work until a person acts, and wait.

        Raises:
            Interrupted: The lane must give up.
        """
        wait = self._longer()
        told = failures.described(error)
        self._announce(events.HandlerPaused(error=told, wait=wait))
        await self.pause(wait)

    def _longer(self) -> float:
        longest: float = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(self._times, 10))
        self._times += 1
        return longest * random.uniform(0.75, 1.0)

    async def keep_trying(
        self, work: Callable[[], Awaitable[None]], *, unless: tuple[type[Exception], ...] = ()
    ) -> None:
        """Repeat work that must come before anything else, until the database lets it succeed.

        Args:
            work: What to do.
            unless: Errors to raise instead of a repetition.

        Raises:
            Interrupted: The lane must give up.
        """
        while True:
            try:
                await work()
            except unless:
                raise
            except Exception as error:  # noqa: BLE001 - announced, and tried again
                await self.wait("database", error)
            else:
                return

    def over(self) -> None:
        """Record that work succeeds again."""
        for where, since in self._since.items():
            self._announce(events.TroubleOver(where=where, seconds=time.monotonic() - since))
        self._since.clear()
        self._times = 0

    async def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            Interrupted: The lane must give up.
        """
        if await wait_until_set(self.interrupted, seconds):
            raise Interrupted

    def check(self) -> None:
        """Raise `Interrupted` if the lane must give up."""
        if self.interrupted.is_set():
            raise Interrupted

    def resume(self) -> None:
        """Allow a last write before the lane gives up."""
        self.interrupted.clear()
