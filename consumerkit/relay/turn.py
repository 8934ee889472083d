"""The relay's turn: one relay at a time publishes the outbox of a database.

On PostgreSQL a transaction holds the turn. The server ends it after ten silent seconds, so a frozen process or a dead
connection holds up no other process for longer. While the relay works, a statement every few seconds keeps the turn.
On SQLite the turn is the lock of a file, and the file's modification time is the sign of life.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

from sqlalchemy.orm import Session

from consumerkit import events
from consumerkit.concurrency import wait_until_set
from consumerkit.events import Announcer
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import RELAY_IDLE, Dialect, RelayHolder

KEPT_ALIVE: Final = RELAY_IDLE / 4
"""Seconds between two signs of life."""

SILENCE_LIMIT: Final = 1.5 * RELAY_IDLE
"""Seconds without a sign of life after which the other process's turn is announced."""

UNSEEN_LIMIT: Final = 60.0
"""Seconds after which it is announced if signs of life are not visible."""

_END: Final = 1.0


class TurnLost(Exception):
    """The transaction that held the turn is gone: another relay may have it."""


class Turn:
    """The turn while it is ours."""

    def __init__(self, sign_of_life: Callable[[], Awaitable[None]]) -> None:
        self._sign_of_life = sign_of_life
        self._one_at_a_time = asyncio.Lock()
        self._lost: Exception | None = None
        self._heard = time.monotonic()
        self._over = False

    async def check(self) -> None:
        """Give a sign of life.

        Raises:
            TurnLost: The turn is no longer ours.
            TimeoutError: The database does not answer.
        """
        async with self._one_at_a_time:
            if self._lost is None:
                # The time of the request, not of the answer: we may be frozen in between.
                asked = time.monotonic()
                try:
                    await self._sign_of_life()
                    self._heard = asked
                except TimeoutError as error:
                    self._lost = error
                except Exception as error:  # noqa: BLE001 - whatever it was, nothing may be sent
                    self._lost = TurnLost(
                        f"the relay's turn was lost ({type(error).__name__}): the server ends it when this process "
                        f"is silent for {RELAY_IDLE:.0f} s; look for what froze the process or its event loop"
                    )
                    self._lost.__cause__ = error
            if self._lost is not None:
                raise self._lost

    async def is_ours(self) -> bool:
        """Tell whether the turn is still ours; asks the database if the last sign of life is old."""
        if self._over:
            return False
        if time.monotonic() - self._heard > 2 * KEPT_ALIVE:
            with suppress(TurnLost, TimeoutError):
                await self.check()
        return self._lost is None

    async def end(self) -> None:
        """End our turn: ask the database nothing more, and wait briefly for a request under way."""
        self._over = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_END), self._one_at_a_time:
                pass

    async def keep(self, over: asyncio.Event) -> None:
        """Give signs of life until the turn is over or lost."""
        with suppress(TurnLost, TimeoutError):  # the next `check` raises it
            while not over.is_set():
                if not await wait_until_set(over, KEPT_ALIVE):
                    await self.check()


@asynccontextmanager
async def taken(database: Database, dialect: Dialect, deadline: float) -> AsyncIterator[Turn | None]:
    """Take the turn for the `with` block; None if another relay has it.

    Args:
        database: The outbox's database.
        dialect: Its dialect.
        deadline: Seconds after which a request to a silent database is abandoned.
    """
    with dialect.relay_guard(database.location) as mine:
        if not mine:
            yield None
        elif dialect.single_writer:
            async with _kept(Turn(partial(_touch, dialect, database.location))) as turn:
                yield turn
        else:
            # This transaction holds only the lock. It reads and writes nothing, so it holds up no vacuum.
            async with database.transaction(within=deadline) as run:
                if not await run(dialect.lock_relay):
                    yield None
                    return
                async with _kept(Turn(partial(run, lambda session: _probe(dialect, session)))) as turn:
                    yield turn


@asynccontextmanager
async def _kept(turn: Turn) -> AsyncIterator[Turn]:
    over = asyncio.Event()
    keeping = asyncio.create_task(turn.keep(over))
    try:
        yield turn
    finally:
        over.set()
        await turn.end()
        await asyncio.wait([keeping], timeout=_END)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


class Awaited:
    """Announces once that the process with the turn is silent, and when that is over.

    A working process keeps the turn while it has much to send, which is no standstill.

    Args:
        holder: Returns who has the turn while messages wait.
        announce: Announces events.
    """

    def __init__(self, holder: Callable[[], Awaitable[RelayHolder | None]], announce: Announcer) -> None:
        self._holder = holder
        self._announce = announce
        self._since: float | None = None
        self._told: str | None = None

    async def note(self, now: float) -> None:
        """Record that another process has the turn."""
        if self._since is None:
            self._since = now
        waited = now - self._since
        if waited < SILENCE_LIMIT:
            return
        holder = await self._holder()
        if holder is not None and self._told in (None, holder.name) and _is_silent(holder, waited):
            if self._told is None:
                self._told = holder.name
                self._announce(events.OutboxTurnAwaited(holder=holder.name, seconds=waited))
        elif self._told is not None:
            # A third process may have the turn now: the wait for it begins.
            self.over(now)
            self._since = now

    def over(self, now: float) -> None:
        """Record that the turn is ours, or that the silent process no longer has it."""
        if self._told is not None and self._since is not None:
            self._announce(events.OutboxTurnCame(seconds=now - self._since))
        self._since = self._told = None


def _is_silent(holder: RelayHolder, waited: float) -> bool:
    return waited >= UNSEEN_LIMIT if holder.silent is None else holder.silent >= SILENCE_LIMIT


def _probe(dialect: Dialect, session: Session) -> None:
    dialect.probe(session.connection())


async def _touch(dialect: Dialect, location: str) -> None:
    dialect.relay_lives(location)
