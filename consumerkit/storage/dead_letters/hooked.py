"""Dead letters that wait for the handler's `on_dead_letter`: which are due, and what became of the call.

A letter is marked in the transaction that records it. Any worker of the handler may make the call: it takes the letter
for a while and counts the try before it calls, so that a call which ends the process is counted, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select, update

from consumerkit.storage.dead_letters.history import entry, extended
from consumerkit.storage.store import Store


@dataclass(frozen=True, slots=True)
class HookRows(Store):
    """One handler's letters that wait for `on_dead_letter`; nothing here commits."""

    def next_due(self, connection: Connection) -> float | None:
        """Return in how many seconds the next letter is due; None if none waits."""
        c = self.tables.dead_letters.c
        late = self.dialect.seconds_since(func.min(c.hook_at))
        found = connection.execute(select(late).where(self._waits())).scalar_one()
        return None if found is None else -float(found)

    def take(self, connection: Connection, seconds: float) -> Any | None:
        """Take a due letter for this many seconds, and count the try; None if none is due."""
        table = self.tables.dead_letters
        c = table.c
        due = select(c.id).where(self._waits(), c.hook_at <= self.dialect.in_seconds(0.0)).order_by(c.id).limit(1)
        number = connection.execute(due.with_for_update(skip_locked=True)).scalar_one_or_none()
        if number is None:
            return None
        taken = {"hook_at": self.dialect.in_seconds(seconds), "hook_tries": c.hook_tries + 1}
        connection.execute(update(table).where(c.id == number).values(**taken))
        return connection.execute(select(table).where(c.id == number)).one()

    def done(self, connection: Connection, row: Any) -> bool:
        """Record the call; return False if another worker has taken the letter since.

        It is the first statement of the transaction with the call's changes, so that of two workers only one has both.
        """
        return self._set(connection, row, hook_at=None)

    def postpone(self, connection: Connection, row: Any, wait: float) -> bool:
        """Schedule the next try; return False if the call is recorded, or another worker makes it."""
        return self._set(connection, row, hook_at=self.dialect.in_seconds(wait))

    def give_back(self, connection: Connection, row: Any) -> bool:
        """Make a call due again that was cut off, and do not count it; return False as `postpone` does.

        It waits for the row's lock: the transaction of the call, which has it, has ended then.
        """
        return self._set(connection, row, hook_at=self.dialect.in_seconds(0.0), hook_tries=row.hook_tries - 1)

    def give_up(
        self, connection: Connection, row: Any, by: str, note: str, what: str = "on_dead_letter failed"
    ) -> bool:
        """Record in the letter's history that the call failed for good; return False as `postpone` does."""
        c = self.tables.dead_letters.c
        here = select(c.history).where(self._is(row)).with_for_update()
        history = connection.execute(here).scalar_one_or_none()
        if history is None:
            return False
        told = extended(history, entry(what, by, note=note))
        return self._set(connection, row, hook_at=None, history=told)

    def give_up_due(self, connection: Connection, by: str, note: str, limit: int) -> list[int]:
        """Give up calls that are due, and record that in the letters' histories; return the letters."""
        c = self.tables.dead_letters.c
        due = select(c.id, c.hook_tries, c.redrives).where(self._waits(), c.hook_at <= self.dialect.in_seconds(0.0))
        rows = connection.execute(due.order_by(c.id).limit(limit).with_for_update(skip_locked=True)).all()
        return [row.id for row in rows if self.give_up(connection, row, by, note, "on_dead_letter given up")]

    def later(self, connection: Connection) -> int:
        """Return how many calls are not due."""
        c = self.tables.dead_letters.c
        query = select(func.count()).select_from(self.tables.dead_letters)
        later = query.where(self._waits(), c.hook_at > self.dialect.in_seconds(0.0))
        return int(connection.execute(later).scalar_one())

    def abandoned(self, connection: Connection) -> float:
        """Return for how many seconds no worker has taken, postponed or marked a letter that waits; 0 if none waits."""
        c = self.tables.dead_letters.c
        late = self.dialect.seconds_since(func.max(c.hook_at))
        return max(0.0, float(connection.execute(select(late).where(self._waits())).scalar_one() or 0.0))

    def forget(self, connection: Connection) -> int:
        """Let no letter wait, because the handler has no `on_dead_letter` any more; return how many waited."""
        return connection.execute(update(self.tables.dead_letters).where(self._waits()).values(hook_at=None)).rowcount

    def _set(self, connection: Connection, row: Any, **values: Any) -> bool:
        table = self.tables.dead_letters
        return connection.execute(update(table).where(self._is(row)).values(**values)).rowcount == 1

    def _is(self, row: Any) -> ColumnElement[bool]:
        # The try is a token. A message that dies again has no tries yet, and one more redrive.
        c = self.tables.dead_letters.c
        return and_(self._waits(), c.id == row.id, c.hook_tries == row.hook_tries, c.redrives == row.redrives)

    def _waits(self) -> ColumnElement[bool]:
        c = self.tables.dead_letters.c
        return and_(c.consumer == self.consumer, c.hook_at.is_not(None))
