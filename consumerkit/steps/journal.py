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
from consumerkit.storage.fence import Owners
from consumerkit.storage.progress import OWNER_BYTES
from consumerkit.storage.step_values import End, FoundStep, Name, Start
from consumerkit.storage.steps import StepRows

InTransaction = Callable[[Callable[[Connection], Any]], Awaitable[Any]]
_MOST_UNWRITTEN: Final = 10_000
_Entry = tuple[Start | End, bytes]  # with the owner that begins or has begun the step
_Waiting = tuple[_Entry, "asyncio.Future[Any]"]


class Unwritten:
    """Known outcomes that the database did not accept, each with the lane that had begun the step.

    All lanes of a handler share them. A partition may be lost during a call and come back, and its message is then with
    any lane. Without the outcome, the step would be called again.
    """

    def __init__(self) -> None:
        self._ends: dict[Name, tuple[End, bytes]] = {}

    def find(self, name: Name) -> tuple[End, bytes] | None:
        """Return the known outcome of a step, and its owner."""
        return self._ends.get(name)

    def add(self, end: End, owner: bytes) -> None:
        """Keep an outcome until it is written; beyond a number of them the oldest is forgotten."""
        if len(self._ends) >= _MOST_UNWRITTEN:
            del self._ends[next(iter(self._ends))]
        self._ends[end.name] = end, owner

    def remove(self, name: Name) -> None:
        """Forget an outcome: the database has it, or another owner has begun the step since."""
        self._ends.pop(name, None)


class Journal:
    """Begins and ends steps of one lane.

    Args:
        rows: The statements.
        run: Runs work in a transaction of its own.
        unwritten: Shared by all lanes of the handler.
    """

    def __init__(self, rows: StepRows, run: InTransaction, unwritten: Unwritten) -> None:
        self.rows = rows
        self.owner = secrets.token_bytes(OWNER_BYTES)
        self.owners: Owners = {}
        self.fenced = False
        """Whether the transaction within which a step runs already holds the fences."""
        self._run = run
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None
        self._unwritten = unwritten

    async def start(self, start: Start) -> FoundStep:
        """Begin a step, unless it is done or under way; see `StepRows.start`.

        Raises:
            Fenced: The message's partition is no longer ours.
            Unavailable: The database is in trouble.
        """
        if (known := self._unwritten.find(start.name)) is not None:
            await self._end(*known)
        found: FoundStep = await self._written((start, self.owner))
        return found

    async def end(self, end: End) -> bool:
        """Record a call's outcome; return False if another worker has begun the step since.

        Raises:
            Fenced: The message's partition is no longer ours.
            Unavailable: The database is in trouble; the outcome is recorded before the step begins again.
        """
        self._unwritten.add(end, self.owner)
        return await self._end(end, self.owner)

    async def _end(self, end: End, owner: bytes) -> bool:
        # After an error it stays known, after `Fenced` too: the partition may come back, with the step as we left it.
        written: bool = await self._written((end, owner))
        self._unwritten.remove(end.name)
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

    async def _written(self, entry: _Entry) -> Any:
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

    def _all(self, entries: list[_Entry], connection: Connection) -> list[Any]:
        starts = [one for one, _ in entries if isinstance(one, Start)]
        ends: dict[bytes, list[End]] = {}
        for one, owner in entries:
            if isinstance(one, End):
                ends.setdefault(owner, []).append(one)
        rows = self.rows
        rows.open(connection, self.owners, fenced=self.fenced)
        found = rows.start(connection, starts, self.owner) if starts else {}
        written = {(name, owner) for owner, some in ends.items() for name in rows.end(connection, some, owner)}
        return [found[one.name] if isinstance(one, Start) else (one.name, owner) in written for one, owner in entries]


def _waited_for(error: BaseException) -> BaseException:
    """Return a separate error for each waiting task: a shared one would collect all tracebacks."""
    if isinstance(error, Fenced | Unavailable):
        made = type(error)(*error.args)
        made.__cause__ = error.__cause__
        return made
    return Unavailable("the record of steps was not written, because the worker stops")
