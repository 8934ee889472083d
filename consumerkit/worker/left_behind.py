"""Rows that no deployed code takes: told at the worker's start and while it runs, and shown by readiness."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from sqlalchemy.orm import Session

from consumerkit import events
from consumerkit.events import Announcer
from consumerkit.handlers.declaration import Declaration
from consumerkit.observability.words import counted, lasting
from consumerkit.storage import left_behind
from consumerkit.storage.dead_letters.hooked import HookRows
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.left_behind import CALLS, UNDOS, LeftBehind
from consumerkit.storage.tables import Tables
from consumerkit.worker.readiness import Finding

_log = logging.getLogger(__name__)


class LeftBehindRows:
    """What the last look found.

    Attributes:
        declarations: The handlers; after a look each says whether the record has steps of it.

    Args:
        declarations: The worker's handlers.
        announce: Announces what is new.
        clock: The monotonic clock.
    """

    def __init__(
        self,
        declarations: Sequence[Declaration],
        announce: Announcer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.declarations = tuple(declarations)
        self._announce = announce
        self._clock = clock
        self._own: list[LeftBehind] = []
        self._others: list[LeftBehind] = []
        self._since: dict[tuple[str, str, str], float] = {}
        self._told: set[tuple[str, str, str]] = set()

    def read(self, session: Session, tables: Tables, numbers: Mapping[str, int]) -> None:
        """Look for such rows, in the caller's transaction.

        Args:
            session: The caller's.
            tables: The table definitions.
            numbers: The handlers' numbers.
        """
        own, recorded = [], set()
        for one in self.declarations:
            number, steps = numbers[one.name], bool(one.steps)
            own += left_behind.of_handler(session, tables, one.name, number, one.topics, has_steps=steps)
            if one.on_dead_letter is None:
                self._forget_hook(session, tables, one.name, number)
            if steps or left_behind.has_steps(session, tables, number):
                recorded.add(one.name)
        self.declarations = tuple(replace(one, undoes=one.name in recorded) for one in self.declarations)
        self._own, self._others = own, left_behind.overdue(session, tables, besides=numbers)
        now = self._clock()
        self._since = {one[:3]: self._since.get(one[:3], now) for one in own}

    def _forget_hook(self, session: Session, tables: Tables, name: str, number: int) -> None:
        connection = session.connection()
        rows = HookRows(tables, dialect_for(connection.dialect.name, tables), number)
        # Until then a worker of another version may have the method, as while a deployment rolls.
        if rows.abandoned(connection) > left_behind.OVERDUE:
            _log.warning(
                "handler %r: %s waited for on_dead_letter, which the handler no longer has; it is not called for them: "
                "see `consumerkit dead-letters list`",
                name,
                counted(rows.forget(connection), "dead letter"),
            )

    def tell(self) -> None:
        """Announce what was not there at the last look; rows of other handlers get a log line."""
        for one in self._own:
            if one[:3] not in self._told:
                self._announce(
                    events.RowsLeftBehind(
                        handler=one.handler, what=one.what, topic=one.topic, count=one.rows, reason=reason(one)
                    )
                )
        for one in self._others:
            if one[:3] not in self._told:
                _log.warning("handler %r: %s", one.handler, not_deployed(one))
        self._told = {one[:3] for one in (*self._own, *self._others)}

    def findings(self) -> Iterator[Finding]:
        """Yield a finding for each kind of row of the worker's own handlers."""
        now, since = self._clock(), self._since
        for one in self._own:
            yield Finding(one.handler, reason(one), now - since.get(one[:3], now))

    def counts(self) -> Mapping[str, int]:
        """Return how many such rows each of the worker's handlers has, and under "" those of other handlers."""
        found: Counter[str] = Counter()
        for one in self._own:
            found[one.handler] += one.rows
        for one in self._others:
            found[""] += one.rows
        return found


def reason(one: LeftBehind) -> str:
    """Return why rows of a deployed handler wait, and the way out.

    Example:
        >>> reason(LeftBehind("pay", "undos", "", 1))[:75]
        '1 step of dead messages waits to be undone, and the handler has no steps an'
    """
    if one.what == UNDOS:
        return (
            f"{_steps(one.rows)} to be undone, and the handler has no steps any more; start a version that has them, "
            f"or give the undos up: `consumerkit undos give-up --handler {one.handler} --note ...`"
        )
    be, wait = ("is", "it waits") if one.rows == 1 else ("are", "they wait")
    return (
        f"{counted(one.rows, 'message')} of topic {one.topic!r} {be} parked, and the handler no longer consumes it; "
        f"{wait} for a version that does, or until PayloadRetention(parked=...) makes dead letters of such messages"
    )


def not_deployed(one: LeftBehind) -> str:
    """Return why rows wait whose handler this worker does not have, and the way out."""
    late = lasting(one.seconds)
    if one.what == UNDOS:
        return (
            f"{_steps(one.rows)} to be undone, due for {late}, and no worker undoes them; start a worker with this "
            "handler and its steps, or, if it never runs again, give the undos up: `consumerkit undos give-up "
            f"--handler {one.handler} --note ...`"
        )
    if one.what == CALLS:
        waits = "waits" if one.rows == 1 else "wait"
        return (
            f"{counted(one.rows, 'dead letter')} {waits} for on_dead_letter, which no worker has called for {late}; "
            "start a worker with this handler and the method, or, if it never runs again, end the calls: "
            f"`consumerkit dead-letters end-calls --handler {one.handler} --note ...`"
        )
    return (
        f"{counted(one.rows, 'parked message')}, due for {late}, and no worker runs them; start a worker with this "
        "handler, or look at the one that has it"
    )


def _steps(count: int) -> str:
    return "1 step of dead messages waits" if count == 1 else f"{count} steps of dead messages wait"
