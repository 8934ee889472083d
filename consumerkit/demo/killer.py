"""Kills worker processes with SIGKILL while they are inside a transaction."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from consumerkit.demo.reports import DemoReports
from consumerkit.demo.scene import DemoScene
from consumerkit.demo.workers import COUNT

# A stopped process that holds SQLite's write lock keeps it while it is stopped. A running process
# ends its transaction sooner than this.
_SURELY = 0.3
_BETWEEN = 1.0  # seconds in which the surviving processes show that they work
_ENOUGH = 20  # messages that a process must have finished before it is killed


class Killer:
    """Kills worker processes, one after another, each in the middle of its work.

    Args:
        scene: The demo's directory and database.
        reports: The reports of the worker processes.
        kills: How many to kill.
        told: Called with each process that was killed.
    """

    def __init__(self, scene: DemoScene, reports: DemoReports, kills: int, told: Callable[[int], None]) -> None:
        self._scene = scene
        self._reports = reports
        self._kills = kills
        self._told = told
        self._next = time.monotonic()

    async def run(self) -> None:
        """Kill until all kills are done."""
        while self._kills:
            await asyncio.sleep(0.02)
            alive = self._reports.alive()
            if len(alive) < COUNT or time.monotonic() < self._next:
                continue
            for process in alive:
                if self._reports.done[process] >= _ENOUGH and await self._kill_at_work(process):
                    self._kills -= 1
                    self._next = time.monotonic() + _BETWEEN
                    self._told(process)
                    break

    async def _kill_at_work(self, process: int) -> bool:
        """Suspend the process; kill it if it is within a transaction, else let it continue."""
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
            caught = False
            try:
                caught = await self._holds_lock()
            finally:
                os.kill(process, signal.SIGKILL if caught else signal.SIGCONT)
            return caught
        return False

    async def _holds_lock(self) -> bool:
        end = time.monotonic() + _SURELY
        while time.monotonic() < end:
            if not self._scene.is_being_written():
                return False
            await asyncio.sleep(0.002)
        return True
