"""The parts of a worker that run: an engine for each handler, the watchdog, and what runs beside them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

from consumerkit import events
from consumerkit.concurrency import remaining, wait_for_first
from consumerkit.engine.engine import Engine
from consumerkit.engine.lanes.executor import HandlerHalted
from consumerkit.errors import ConsumerkitError, Unavailable
from consumerkit.events import Announcer
from consumerkit.maintenance.pruner import Retention
from consumerkit.message import TopicPartition
from consumerkit.relay import Relay
from consumerkit.transports.base import Survey
from consumerkit.worker.watchdog import Watchdog

_log = logging.getLogger(__name__)

LAST_STEPS: Final = 5.0
"""Seconds within which a part without messages must stop."""


class Part(Protocol):
    """A part that runs beside the engines."""

    def run(self) -> Coroutine[Any, Any, None]:
        """Run until `stop`."""
        ...

    def stop(self) -> None:
        """Request the end of `run`."""


class Parts:
    """Runs the parts of one worker, and stops them all.

    Attributes:
        engines: The started engines.
        relay: Sends the outbox; None before `run`.
        retention: Prunes and expires; None before `run`.
    """

    def __init__(self, announce: Announcer) -> None:
        self.engines: list[Engine] = []
        self.relay: Relay | None = None
        self.retention: Retention | None = None
        self._announce = announce
        self._grace = 0.0
        self._beside: dict[str, Part] = {}
        self._watchdog: Watchdog | None = None
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._failed: asyncio.Future[None] | None = None

    @property
    def are_running(self) -> bool:
        """Whether `run` was called."""
        return bool(self._tasks)

    async def add(self, engine: Engine) -> None:
        """Start an engine; its handler's messages are fetched from `run` on."""
        await engine.start()
        self.engines.append(engine)

    async def abandon(self) -> None:
        """Stop the engines that were added, after another part failed to start."""
        for engine in self.engines:
            with suppress(Exception):
                await engine.stop(LAST_STEPS)
        self.engines.clear()

    def run(
        self, relay: Relay, retention: Retention, others: Mapping[str, Part], watchdog: Watchdog, *, grace: float
    ) -> None:
        """Run all parts.

        Args:
            relay: Sends the outbox.
            retention: Prunes and expires.
            others: What else runs, by its name for log lines.
            watchdog: Watches the engines.
            grace: Seconds that an engine has for its other transactions after its handler has halted.
        """
        self._failed = asyncio.get_running_loop().create_future()
        self.relay, self.retention, self._watchdog = relay, retention, watchdog
        self._beside = {"relay": relay, "retention": retention, **others}
        self._grace = grace
        for engine in self.engines:
            self._spawn(engine.run(), engine.declared.name)
        for name, part in self._beside.items():
            self._spawn(part.run(), name)
        watchdog.start(asyncio.get_running_loop())

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks[task] = name
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Let the others run on where a handler halts; end the worker after any other error, which is a defect."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        name = self._tasks[task]
        if isinstance(error, HandlerHalted):
            self._announce(events.HandlerStopped(handler=name, error=str(error)))
            engine = next(engine for engine in self.engines if engine.declared.name == name)
            engine.halted = asyncio.create_task(engine.stop(self._grace))
            if not all(engine.halted for engine in self.engines):
                return
            error = ConsumerkitError(f"handler {name!r} stopped, and no other is left: {error}")
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def failure(self, stopping: asyncio.Event) -> BaseException | None:
        """Wait until `stopping` is set or a part has failed; return the error that ended it."""
        assert self._failed is not None
        await wait_for_first(stopping, self._failed, within=None)
        return self._failed.exception() if self._failed.done() else None

    async def stop(self, grace: float, end: float) -> bool:
        """Stop the engines within `grace` seconds, and then the other parts; return whether all ended in time.

        Args:
            grace: Seconds for the engines.
            end: When all must have ended, by the monotonic clock.
        """
        answers = await asyncio.gather(*(engine.halted or engine.stop(grace) for engine in self.engines))
        for part in self._beside.values():
            part.stop()
        within = min(LAST_STEPS, remaining(end))
        _, late = await asyncio.wait(self._tasks, timeout=within) if self._tasks else (set(), set())
        for task in late:
            _log.warning("%s did not end within %.0f s and was cancelled", self._tasks[task], within)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._failed is not None:
            self._failed.cancel()
        return all(answers) and not late

    # What they are doing.

    async def surveys(self, handler: str) -> dict[str, Survey]:
        """See `Worker.surveys`."""
        found: dict[str, Survey] = {}
        for engine in self.engines:
            if engine.declared.name != handler:
                continue
            for topic in engine.declared.topics:
                with suppress(Unavailable, TimeoutError):
                    found[topic] = await asyncio.wait_for(engine.consumer.survey(topic), LAST_STEPS)
        return found

    def in_flight(self) -> dict[str, int]:
        """See `Worker.in_flight`."""
        return {
            engine.declared.name: sum(partition.offsets.unfinished for partition in engine.partitions)
            for engine in self.engines
        }

    def positions(self) -> dict[TopicPartition, int]:
        """See `Worker.positions`."""
        found = [partition for engine in self.engines for partition in engine.partitions]
        return {one.name: one.offsets.position or 0 for one in found}

    def members(self) -> list[tuple[str, str]]:
        """See `Worker.members`."""
        engines = list(self.engines)
        return [(one.declared.group, member) for one in engines if (member := one.consumer.member())]

    def oldest_transactions(self) -> dict[str, float]:
        """Return for how many seconds each handler's oldest transaction has run; 0 if none is under way."""
        return {engine.declared.name: engine.oldest_transaction() for engine in self.engines}
