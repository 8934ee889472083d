"""Asks the database a cheap question while nothing else does, so that a silent database is noticed without messages."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from consumerkit import events
from consumerkit.concurrency import wait_until_set
from consumerkit.dead_letters.error_text import of_database
from consumerkit.events import Announcer
from consumerkit.storage.database import Database

ASKED_AFTER: Final = 5.0
"""Seconds without an answer of the database to anything, after which it is asked."""
SILENT_AFTER: Final = 5.0
"""Seconds without an answer to that question after which the database is in trouble."""
GIVEN_UP_AFTER: Final = 15.0
"""Seconds after which the question is given up and asked on another connection; twice as many each time."""
LONGEST: Final = 60.0
LONGEST_WAIT: Final = 10.0
"""Seconds after which a database that refuses is asked again at the latest."""
BEAT: Final = 1.0


class DatabaseWatch:
    """Notices a database that does not answer, also while there is nothing to handle.

    At most one question is under way. As long as the database answers other requests of this process, none is asked.

    Args:
        database: The database.
        announce: Announces trouble and its end.
        clock: Seconds that only go up.
    """

    def __init__(self, database: Database, announce: Announcer, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._announce = announce
        self._clock = clock
        self._stopping = asyncio.Event()
        self._question: asyncio.Future[None] | None = None
        self._asked = clock()
        self._told = False
        self._since: float | None = None
        self._again_at = 0.0
        self._failures = 0
        self._within = GIVEN_UP_AFTER
        self._crowded = self._connected = False

    async def run(self) -> None:
        """Watch until `stop`."""
        try:
            while not await wait_until_set(self._stopping, BEAT):
                self.look()
        finally:
            if self._question is not None:
                self._question.cancel()
                await asyncio.gather(self._question, return_exceptions=True)

    def stop(self) -> None:
        """End `run`."""
        self._stopping.set()

    def look(self) -> None:
        """Note what became of the question, announce trouble or its end, and ask if it is time."""
        now, answered = self._clock(), self._database.answered
        if answered > self._asked:
            self._works(now)
        if self._question is None:
            due = max(self._asked, answered) + ASKED_AFTER if self._since is None else self._again_at
            if now >= due:
                self._ask(now)
        elif self._question.done():
            error, self._question = _error_of(self._question), None
            if error is not None and answered <= self._asked:
                self._failed(now, error)
        elif not self._told and answered <= self._asked and now - self._asked >= SILENT_AFTER:
            waited = now - self._asked
            self._trouble(self._silence(waited), max(BEAT, self._within - waited))

    def _silence(self, waited: float) -> str:
        """Tell a pool without a free connection, which a program's own transactions hold, from a silent server."""
        if self._crowded and not self._connected and (most := self._database.used_up) is not None:
            return (
                f"all {most} connections of the engine's pool are in use, and none was free for {waited:.0f} s; end "
                "the transactions that hold them, or give the engine a larger pool_size"
            )
        return f"it has not answered for {waited:.0f} s; look for a server that is frozen or cannot be reached"

    def _works(self, now: float) -> None:
        self._failures, self._within = 0, GIVEN_UP_AFTER
        if self._since is not None:
            seconds, self._since = now - self._since, None
            self._announce(events.TroubleOver(where="database", seconds=seconds))

    def _failed(self, now: float, error: BaseException) -> None:
        """Ask a silent database again at once, on another connection, and one that refuses a little later."""
        self._failures += 1
        silent = isinstance(error, TimeoutError)
        wait = BEAT if silent else min(LONGEST_WAIT, BEAT * 2.0**self._failures)
        self._again_at = now + (0.0 if silent else wait)
        if silent:
            self._within = min(LONGEST, 2 * self._within)
        if not self._told:
            self._trouble(of_database(error), wait)

    def _trouble(self, error: str, wait: float) -> None:
        self._told = True
        if self._since is None:
            self._since = self._asked
        self._announce(events.Trouble(where="database", error=error, wait=wait))

    def _ask(self, now: float) -> None:
        self._asked, self._told = now, False
        # Asked before: then the connection that this question may be making does not count.
        self._crowded, self._connected = self._database.used_up is not None, False
        if self._database.runs_in_threads:
            self._question = in_a_thread(lambda: self._database.run_blocking(self._put))
        else:
            self._question = asyncio.ensure_future(self._database.run(self._put, within=self._within))

    def _put(self, session: Session) -> None:
        session.connection()
        self._connected = True
        session.execute(select(1))


def _error_of(question: asyncio.Future[None]) -> BaseException | None:
    return asyncio.CancelledError() if question.cancelled() else question.exception()


def in_a_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Run work in a thread that does not delay the end of the process, however long the work hangs."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except Exception as found:  # noqa: BLE001 - raised where the answer is awaited
            error = found
        with contextlib.suppress(RuntimeError):  # the loop was closed, and no caller waits any more
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="consumerkit-database-watch", daemon=True).start()
    return answer
