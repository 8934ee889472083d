"""Replaces a supervisor's processes one after another, while the others work."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from consumerkit.concurrency import wait_until_set
from consumerkit.observability.words import counted
from consumerkit.supervisor.child import Child

_SAID_EVERY: Final = 30.0
"""Seconds between two log lines that say that a new process does not work yet."""
_log = logging.getLogger(__name__)


class Replacement:
    """Replaces processes one after another: the next one stops once the new one works.

    Where a new process ends instead, the others stay as they are.

    Args:
        children: The processes.
        stopping: Set when all are to stop, which ends a replacement.
    """

    def __init__(self, children: Sequence[Child], stopping: asyncio.Event) -> None:
        self._children = children
        self._stopping = stopping
        self._task: asyncio.Task[None] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether processes are being replaced."""
        return self._task is not None and not self._task.done()

    def begin(self, why: str, way_out: str = "") -> None:
        """Replace all processes; a replacement that is under way ends, and begins again with the first of them.

        Args:
            why: The reason, for the log.
            way_out: What to do where a new process does not start, for the log; where empty, the
                replacement does not log that.
        """
        self.cancel()
        what = counted(len(self._children), "worker process is replaced", "worker processes are replaced")
        _log.info("%s: %s%s", why, what, "" if len(self._children) == 1 else " one after another")
        self._task = asyncio.create_task(self._replace_each(why, way_out))

    def cancel(self) -> None:
        """End a running replacement; a process that was already told to stop is still replaced."""
        if self._task is not None:
            self._task.cancel()

    async def _replace_each(self, why: str, way_out: str) -> None:
        for child in self._children:
            deaths = child.deaths
            child.works = False
            child.replaced = True
            child.leave.set()
            await self._until_it_works(child, deaths, why)
            if self._stopping.is_set():
                return
            if not child.works:
                if way_out:
                    _log.error(
                        "worker process %d does not start with the present code; the others go on as they are. %s",
                        child.number,
                        way_out,
                    )
                return
        _log.info("every worker process is replaced and works")

    async def _until_it_works(self, child: Child, deaths: int, why: str) -> None:
        """Wait until the new process works or has ended, and log the wait from time to time."""
        began = time.monotonic()
        while not (child.works or child.deaths > deaths or self._stopping.is_set()):
            child.changed.clear()
            await wait_until_set(child.changed, _SAID_EVERY)
            if not child.changed.is_set():
                seconds = time.monotonic() - began
                _log.warning("worker process %d does not work yet, %.0f s after %s", child.number, seconds, why)
