"""The watchdog: it ends a process that stands still, and its partitions then go to a process that works.

It is a thread, because it watches for an event loop that is blocked. It never repairs: what a
half-dead process still holds is unknown, whereas the work of a dead process is rolled back and
delivered again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from typing import Final

from consumerkit.engine.engine import Engine

EXIT_STATUS: Final = 71
_log = logging.getLogger(__name__)


class Watchdog:
    """Looks for a stopped event loop, a consumer that is not polled, and a transaction that does not end.

    Args:
        engines: The engines to watch.
        stall: Seconds without a sign of life after which the process ends. `math.inf` ends it never,
            not even where a consumer fails: a test that runs workers is not theirs to end.
        transaction: Seconds that a transaction may take; `stall` is added to them.
    """

    def __init__(self, engines: Sequence[Engine], *, stall: float, transaction: float) -> None:
        self._engines = engines
        self._stall = stall
        self._transaction = transaction
        self._beat = time.monotonic()
        self._stopping = threading.Event()
        self._heart: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch until `stop`, or until the loop is closed, as then no worker is left."""
        if self._stall == math.inf:
            return
        self._heart = loop.create_task(self._beating())
        threading.Thread(target=self._watch, args=(loop,), name="consumerkit-watchdog", daemon=True).start()

    async def _beating(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(min(1.0, self._stall / 4))

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        interval = min(1.0, self._stall / 4)
        last = time.monotonic()
        while not self._stopping.wait(interval) and not loop.is_closed():
            now = time.monotonic()
            # The process itself was suspended (SIGSTOP, a suspended machine): start measuring
            # again.
            if now - last > interval + self._stall / 2:
                self._beat = now
                last = now
                self._stopping.wait(self._stall / 2)
                last = time.monotonic()
                continue
            last = now
            if (reason := self._reason(now)) is not None:
                _log.critical("worker: %s; the process ends, to be restarted", reason)
                logging.shutdown()
                os._exit(EXIT_STATUS)

    def _reason(self, now: float) -> str | None:
        if now - self._beat > self._stall:
            return f"the event loop has been blocked for {now - self._beat:.0f} s"
        for engine in self._engines:
            if engine.halted is None and (reason := self._stuck(engine, now)) is not None:
                return f"handler {engine.declared.name!r}: {reason}"
        return None

    def _stuck(self, engine: Engine, now: float) -> str | None:
        health = engine.consumer.health()
        if health.error is not None:
            return f"its consumer failed: {health.error}"
        if health.idle > self._stall:
            return f"its consumer's own loop has not run for {health.idle:.0f} s"
        if engine.running and now - engine.last_turn > self._stall:
            return f"nothing was fetched for {now - engine.last_turn:.0f} s"
        oldest = engine.oldest_transaction()
        if oldest > self._transaction + self._stall:
            return f"a transaction has taken {oldest:.0f} s"
        return None

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()
        if self._heart is not None:
            self._heart.cancel()
