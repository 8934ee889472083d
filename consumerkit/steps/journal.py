"""Records a lane's steps in short transactions of their own.

Entries that arrive while one is open share the next.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection

from consumerkit.errors import Fenced, Unavailable
from consumerkit.redaction.database_words import database_words
from consumerkit.redaction.text import redact
from consumerkit.storage.fence import OWNER_BYTES, Owners
from consumerkit.storage.step_values import End, FoundStep, Name, Start
from consumerkit.storage.steps import StepRows

InTransaction = Callable[[Callable[[Connection], Any]], Awaitable[Any]]
_MOST_UNWRITTEN: Final = 10_000
_Waiting = tuple[Start | End, "asyncio.Future[Any]"]


class Journal:
    """Begins and ends steps of one lane.

    Args:
        rows: The statements.
        run: Runs work in a transaction of its own.
    """

    def __init__(self, rows: StepRows, run: InTransaction) -> None:
        self.rows = rows
        self.owner = secrets.token_bytes(OWNER_BYTES)
        self.owners: Owners = {}
        self.fenced = False
        """Whether the transaction within which a step runs already holds the fences."""
        self._run = run
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None
        # Known outcomes that the database did not accept; without them those steps would be called again.
        self._unwritten: dict[Name, End] = {}

    async def start(self, start: Start) -> FoundStep:
        """Begin a step, unless it is done or under way; see `StepRows.start`.

        Raises:
            Fenced: The message's partition is no longer ours.
            Unavailable: The database is in trouble.
        """
        if (known := self._unwritten.get(start.name)) is not None:
            await self.end(known)
        found: FoundStep = await self._written(start)
        return found

    async def end(self, end: End) -> bool:
        """Record a call's outcome; return False if another worker has begun the step since.

        Raises:
            Fenced: The message's partition is no longer ours.
            Unavailable: The database is in trouble; the outcome is recorded before the step begins again.
        """
        if len(self._unwritten) < _MOST_UNWRITTEN:
            self._unwritten[end.name] = end
        try:
            written: bool = await self._written(end)
        except Fenced:
            self._unwritten.pop(end.name, None)
            raise
        self._unwritten.pop(end.name, None)
        return written

    async def extend(self, name: Name, deadline: float) -> bool:
        """Restart a step's deadline now; return whether the step is still ours."""

        def work(connection: Connection) -> bool:
            self.rows.open(connection, self.owners, fenced=self.fenced)
            return self.rows.extend(connection, name, deadline, self.owner)

        mine: bool = await self.ask(work)
        return mine

    async def ask(self, work: Callable[[Connection], Any]) -> Any:
        """Run work in a transaction of its own.

        Raises:
            Fenced: The work raised it.
            Unavailable: The database is in trouble.
        """
        try:
            return await self._run(work)
        except Fenced:
            raise
        except Exception as error:
            words = database_words(error)
            told = type(error).__name__ if words is None else f"{type(error).__name__}: {redact(words)}"
            raise Unavailable(f"the record of steps: {told}") from error

    async def _written(self, entry: Start | End) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await future

    async def _write(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            try:
                answers = await self.ask(partial(self._all, [entry for entry, _ in taken]))
            except BaseException as error:
                for _, future in taken:
                    if not future.done():
                        future.set_exception(_waited_for(error))
                        future.exception()  # the waiting task may be gone
                if not isinstance(error, Exception):
                    raise
            else:
                for (_, future), answer in zip(taken, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)

    def _all(self, entries: list[Start | End], connection: Connection) -> list[Any]:
        starts = [one for one in entries if isinstance(one, Start)]
        ends = [one for one in entries if isinstance(one, End)]
        rows = self.rows
        rows.open(connection, self.owners, fenced=self.fenced)
        found = rows.start(connection, starts, self.owner) if starts else {}
        written = rows.end(connection, ends, self.owner) if ends else set()
        return [found[one.name] if isinstance(one, Start) else one.name in written for one in entries]


def _waited_for(error: BaseException) -> BaseException:
    """Return a separate error for each waiting task: a shared one would collect all tracebacks."""
    if isinstance(error, Fenced | Unavailable):
        made = type(error)(*error.args)
        made.__cause__ = error.__cause__
        return made
    return Unavailable("the record of steps was not written, because the worker stops")
