"""The demo itself: send, kill, wait until everything is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from consumerkit.demo import workers
from consumerkit.demo.broker import DemoLog, EmbeddedTransport
from consumerkit.demo.display import Display, Tally
from consumerkit.demo.killer import Killer
from consumerkit.demo.payments import PaymentPlan
from consumerkit.demo.reports import DemoReports
from consumerkit.demo.scene import DemoScene
from consumerkit.demo.shop import TOPIC
from consumerkit.errors import ConsumerkitError
from consumerkit.transports.base import Producer, Record

_A_KILL_TAKES = 5.0  # seconds, with restart and rebalance; sending is spread over all kills
_BURST = 0.05  # seconds between two portions that are sent
_TRICKLE = 0.9  # the share that is sent at a steady pace; the rest is sent more slowly, since a kill needs running work
_SLOWER = 8
_QUIET = 30.0  # seconds without progress after which the demo stops waiting


class Play:
    """One run of the demo.

    Args:
        scene: The demo's directory and broker.
        plan: What is sent.
        log: The broker's log, seen from outside.
        kills: How many worker processes to kill.
        display: Shows the progress.
    """

    def __init__(self, scene: DemoScene, plan: PaymentPlan, log: DemoLog, kills: int, display: Display) -> None:
        self._scene = scene
        self._plan = plan
        self._log = log
        self._kills = kills
        self._display = display
        self._reports = DemoReports(scene.reports)
        self._produced = 0
        self.killed = 0

    async def run(self) -> None:
        """Send everything, kill workers, and wait until the workers have finished or make no progress."""
        watching = asyncio.create_task(self._watch())
        try:
            async with workers.running(self._scene):
                killing = asyncio.create_task(self._kill())
                try:
                    await self._produce(killing)
                    await self._finished()
                finally:
                    killing.cancel()
        finally:
            watching.cancel()
            self._show()

    async def _produce(self, killing: asyncio.Task[None]) -> None:
        """Send at a steady pace until all kills are done, and then the rest at once."""
        records = self._plan.records
        portion = max(1, int(len(records) * _BURST / (_A_KILL_TAKES * (self._kills + 1))))
        producer = EmbeddedTransport(self._scene.broker).producer()
        await producer.start()
        try:
            while self._produced < len(records):
                await self._send(producer, records[self._produced : self._produced + portion])
                if not killing.done():
                    slow = self._produced > _TRICKLE * len(records)
                    await asyncio.wait([killing], timeout=_BURST * (_SLOWER if slow else 1))
        finally:
            await producer.stop()

    async def _send(self, producer: Producer, records: Sequence[Record]) -> None:
        refused = [answer for answer in await producer.send(records) if answer is not None]
        if refused:
            raise ConsumerkitError(f"the embedded broker refused a message: {refused[0].message}")
        self._produced += len(records)

    async def _kill(self) -> None:
        """Kill as often as planned, as far as that succeeds in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_A_KILL_TAKES * 3 * (self._kills + 1)):
                await Killer(self._scene, self._reports, self._kills, self._tell_kill).run()

    def _tell_kill(self, process: int) -> None:
        self.killed += 1
        self._display.tell(f"SIGKILL to worker process {process}, in the middle of a transaction")

    async def _finished(self) -> None:
        """Wait until the group has committed everything, and nothing is parked or in the outbox."""
        seen, since = None, time.monotonic()
        while True:
            partitions = await asyncio.to_thread(self._log.partitions, TOPIC)
            # A parked message is tried again later, although its offset is committed.
            waiting = self._scene.number(
                "SELECT (SELECT count(*) FROM consumerkit_outbox_messages) "
                "+ (SELECT count(*) FROM consumerkit_parked_messages)"
            )
            if not waiting and all(one.committed == one.end for one in partitions):
                return
            if seen != (seen := (partitions, waiting, self._tally())):
                since = time.monotonic()
            if time.monotonic() - since > _QUIET:
                self._display.tell(f"nothing has moved for {_QUIET:.0f} s; the workers' log is {self._scene.log}")
                return
            await asyncio.sleep(0.2)

    async def _watch(self) -> None:
        while True:
            self._show()
            await asyncio.sleep(0.1)

    def _show(self) -> None:
        self._reports.read()
        self._display.update(self._tally())

    def _tally(self) -> Tally:
        return Tally(
            total=len(self._plan.records),
            distinct=self._plan.distinct,
            produced=self._produced,
            processed=self._scene.number("SELECT count(*) FROM journal"),
            skipped=self._reports.skipped,
            dead=self._scene.number("SELECT count(*) FROM consumerkit_dead_letters"),
            kills=self.killed,
            alive=len(self._reports.alive()),
        )
