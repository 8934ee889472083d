"""The record of each message's steps.

A row is written before a step is called, and again when its outcome is known. Each write checks,
under the fences of the messages' partitions, that the partitions are still ours. A result is
written only if no other worker has begun the step since. So a worker that was paused can neither
begin a step nor replace a newer result by an old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    delete,
    exists,
    func,
    select,
    text,
    tuple_,
    update,
)

from consumerkit.errors import Fenced
from consumerkit.outcome import Outcome
from consumerkit.storage import fence
from consumerkit.storage.dead_letters.letters import State as LetterState
from consumerkit.storage.dialects import Limits
from consumerkit.storage.fence import Owners
from consumerkit.storage.portions import portions
from consumerkit.storage.step_values import TO_UNDO, End, FoundStep, Name, Start, StepState, StoredStep
from consumerkit.storage.store import Store
from consumerkit.storage.tables import Tables

_AT_ONCE: Final = 80  # a statement of an older SQLite takes 999 parameters


@dataclass(frozen=True, slots=True)
class StepRows(Store):
    """One handler's part of the record; nothing here commits.

    Attributes:
        limits: How long a transaction may take on the server.
    """

    limits: Limits

    def unknown(self, connection: Connection, digests: Sequence[bytes], *, revives: bool) -> set[bytes]:
        """Return the IDs that the ledger does not know; with `revives`, also those that it has as dead."""
        kept = self.dialect.kept(connection, self.consumer, digests) if digests else {}
        return {one for one in digests if one not in kept or (revives and kept[one].outcome is Outcome.DEAD)}

    def read(self, connection: Connection, digests: Sequence[bytes]) -> dict[Name, FoundStep]:
        """Return how the steps of these messages stand."""
        if not self.dialect.single_writer:
            # One text for any number of digests, so that it is compiled once.
            query = self._select().where(text("digest = ANY(CAST(:digests AS bytea[]))"))
            return _named(connection.execute(query, {"digests": list(digests)}))
        found, c = {}, self.tables.message_steps.c
        for some in portions(digests):
            found.update(_named(connection.execute(self._select().where(c.digest.in_(some)))))
        return found

    def open(self, connection: Connection, owners: Owners, *, fenced: bool) -> None:
        """Begin a transaction that writes for messages of these partitions.

        Args:
            connection: The transaction's.
            owners: Our token for each of the partitions.
            fenced: Whether a transaction of ours already holds their fences: another wait for one
                could be a wait for ourselves, behind a take-over that waits for that transaction.

        Raises:
            Fenced: One of them is no longer ours.
        """
        numbers = () if fenced else fence.numbers(self.tables, self.consumer, owners)
        self.dialect.begin(connection, self.limits, uuid4().hex, numbers)
        owned = fence.count_owned(connection, self, owners)
        if owned != len(owners):
            raise Fenced(f"{len(owners) - owned} of {len(owners)} partitions were taken over")

    def start(self, connection: Connection, starts: Iterable[Start], owner: bytes) -> dict[Name, FoundStep]:
        """Begin steps that no worker has begun, and take over those whose call is known to be over, or is in doubt.

        Args:
            connection: Of a transaction that `open` began.
            starts: Each step once.
            owner: The token of the worker that begins them.
        """
        # Sorted: two transactions that begin the same steps wait for each other instead of
        # deadlocking.
        wanted = {one.name: one for one in sorted(starts)}
        new = self._insert(connection, list(wanted.values()), owner)
        begun = {name: FoundStep(None, wanted[name].arguments, ours=True) for name in new}
        for some in portions([name for name in wanted if name not in new], _AT_ONCE):
            c = self.tables.message_steps.c
            query = self._select().where(tuple_(c.digest, c.step).in_(some)).order_by(c.digest, c.step)
            rows = connection.execute(query.with_for_update())
            for name, found in _named(rows, owner).items():
                begun[name] = self._take_over(connection, wanted[name], found, owner)
        return begun

    def _insert(self, connection: Connection, starts: Sequence[Start], owner: bytes) -> set[Name]:
        if not self.dialect.single_writer:
            # Imported here: it takes as long to import as all our own modules.
            from consumerkit.storage.dialects import many_steps

            given = [self._sealed(one.given) for one in starts]
            return many_steps.begin(connection, self.tables.message_steps, self.consumer, starts, owner, given)
        new: set[Name] = set()
        for some in portions(starts, _AT_ONCE):
            new |= self._insert_some(connection, some, owner)
        return new

    def _insert_some(self, connection: Connection, starts: Sequence[Start], owner: bytes) -> set[Name]:
        # Imported here: it takes as long to import as all our own modules.
        from sqlalchemy.dialects import sqlite

        table = self.tables.message_steps
        rows = [
            {
                "consumer": self.consumer,
                "digest": one.digest,
                "step": one.step,
                "state": StepState.STARTED.value,
                "owner": owner,
                "arguments": one.arguments,
                "calls": 1,
                "deadline_at": self.dialect.in_seconds(one.deadline),
                **self._undone_with(one),
            }
            for one in starts
        ]
        statement = sqlite.insert(table).values(rows).on_conflict_do_nothing().returning(table.c.digest, table.c.step)
        return {(bytes(digest), step) for digest, step in connection.execute(statement)}

    def _sealed(self, given: bytes | None) -> tuple[bytes | None, bool]:
        """Return a step's arguments as they are stored, and whether they are sealed."""
        sealer = self.tables.sealer
        return (given, False) if sealer is None or given is None else (sealer.seal(given), True)

    def _undone_with(self, start: Start) -> dict[str, Any]:
        given, sealed = self._sealed(start.given)
        place: Any = 0
        if start.undo is not None:
            # On SQLite, clocks are too coarse to give the order in which steps are undone.
            before = self.tables.message_steps.alias("before").c
            begun = select(func.coalesce(func.max(before.place), 0) + 1)
            place = begun.where(before.consumer == self.consumer, before.digest == start.digest).scalar_subquery()
        return {"undo": start.undo, "given": given, "sealed": sealed, "place": place}

    def _take_over(self, connection: Connection, start: Start, found: FoundStep, owner: bytes) -> FoundStep:
        if found.state is StepState.UNDONE:
            begins = FoundStep(None, start.arguments, ours=True, generation=found.generation + 1)
            self._begin(connection, start, begins, owner)
            return begins
        if (
            found.state in (StepState.DONE, StepState.UNDOING, StepState.NOT_UNDONE)
            or found.arguments != start.arguments
        ):
            return found
        if found.state is StepState.STARTED and (found.wait > 0 or not start.settles):
            return found
        begins = found._replace(ours=True, calls=found.calls + 1)
        self._begin(connection, start, begins, owner)
        return begins

    def _begin(self, connection: Connection, start: Start, begins: FoundStep, owner: bytes) -> None:
        values = {
            "state": StepState.STARTED.value,
            "owner": owner,
            "arguments": start.arguments,
            "calls": begins.calls,
            "generation": begins.generation,
            "result": None,
            "ended_at": None,
            **self._undone_with(start),
        }
        begun = {"started_at": func.now(), "deadline_at": self.dialect.in_seconds(start.deadline)}
        table = self.tables.message_steps
        connection.execute(update(table).where(self._is(start.name)).values(**values, **begun))

    def end(self, connection: Connection, ends: Sequence[End], owner: bytes) -> set[Name]:
        """Record the outcomes of calls; return the steps that are written.

        A step that another worker has begun since stays unchanged. Writing the same outcome again
        changes nothing.
        """
        table = self.tables.message_steps
        last = sorted({one.name: one for one in ends}.values())
        if not self.dialect.single_writer:
            from consumerkit.storage.dialects import many_steps

            return many_steps.end(connection, table, self.consumer, last, owner)
        c = table.c
        mine = (c.consumer == self.consumer, c.digest == bindparam("of"), c.step == bindparam("name"), c.owner == owner)
        ended: dict[str, Any] = {"state": bindparam("became"), "result": bindparam("returned")}
        rows = [{"of": one.digest, "name": one.step, "became": one.state.value, "returned": one.result} for one in last]
        connection.execute(update(table).where(*mine).values(ended_at=func.now(), **ended), rows)
        written: set[Name] = set()
        for some in portions([one.name for one in last], _AT_ONCE):
            here = and_(c.consumer == self.consumer, c.owner == owner, tuple_(c.digest, c.step).in_(some))
            found = connection.execute(select(c.digest, c.step).where(here))
            written |= {(bytes(digest), step) for digest, step in found}
        return written

    def extend(self, connection: Connection, name: Name, deadline: float, owner: bytes) -> bool:
        """Restart a deadline from now; return whether the step is still ours."""
        table = self.tables.message_steps
        here = and_(self._is(name), table.c.owner == owner, table.c.state == StepState.STARTED.value)
        later = update(table).where(here).values(deadline_at=self.dialect.in_seconds(deadline))
        return connection.execute(later).rowcount == 1

    def _is(self, name: Name) -> ColumnElement[bool]:
        c = self.tables.message_steps.c
        return and_(c.consumer == self.consumer, c.digest == name[0], c.step == name[1])

    def _select(self) -> Any:
        c = self.tables.message_steps.c
        late = self.dialect.seconds_since(func.coalesce(c.undo_at, c.deadline_at)).label("late")
        columns = (c.digest, c.step, c.state, c.owner, c.arguments, c.result, c.calls, c.generation, c.undo_letter)
        return select(*columns, late).where(c.consumer == self.consumer)


def _named(rows: Iterable[Row[Any]], owner: bytes | None = None) -> dict[Name, FoundStep]:
    """Return the steps that were read. Our own call is over before we begin its step again: it is in doubt at once."""
    found = {}
    for row in rows:
        wait = -float(row.late) if bytes(row.owner) != owner else 0.0
        arguments = bytes(row.arguments)
        state = StepState(row.state)
        found[bytes(row.digest), row.step] = FoundStep(
            state, arguments, row.result, wait, False, row.calls, row.generation, row.undo_letter
        )
    return found


def told(connection: Connection, tables: Tables, consumer: int, digests: Sequence[bytes]) -> tuple[StoredStep, ...]:
    """Return the steps of a message, in the order in which they were begun."""
    c = tables.message_steps.c
    about = (c.step, c.state, c.calls, c.started_at, c.deadline_at, c.ended_at)
    undo = (c.generation, c.undo_at, c.undo_attempts, c.undo_letter)
    query = select(*about, *undo).where(c.consumer == consumer, c.digest.in_(digests)).order_by(c.started_at, c.step)
    return tuple(StoredStep._make(row) for row in connection.execute(query))


def forget(connection: Connection, tables: Tables, consumer: int, digests: Sequence[bytes]) -> None:
    """Forget the steps of messages whose ledger rows are deleted, or whose payloads are erased.

    Steps that are still to be undone stay until they are.
    """
    c = tables.message_steps.c
    own = (c.consumer == consumer, c.digest.in_(digests), c.state.not_in(TO_UNDO))
    connection.execute(delete(tables.message_steps).where(*own))


def has_orphans(connection: Connection, tables: Tables, consumer: int, before: datetime) -> bool:
    """Return whether `forget_orphans` would find anything."""
    c = tables.message_steps.c
    return connection.execute(select(c.step).where(_orphans(tables, consumer, before)).limit(1)).first() is not None


def forget_orphans(connection: Connection, tables: Tables, consumer: int, before: datetime, limit: int) -> None:
    """Forget steps begun before a moment that no row of the ledger belongs to.

    Their messages were skipped or discarded before they had a row, or their handler is gone.
    """
    table = tables.message_steps
    c = table.c
    found = select(c.digest).where(_orphans(tables, consumer, before)).order_by(c.digest).limit(limit)
    digests = sorted({bytes(digest) for (digest,) in connection.execute(found.with_for_update(skip_locked=True))})
    for some in portions(digests):
        connection.execute(delete(table).where(c.digest.in_(some), _orphans(tables, consumer, before)))


def _orphans(tables: Tables, consumer: int, before: datetime) -> ColumnElement[bool]:
    c, ledger, letters = tables.message_steps.c, tables.processed_messages.c, tables.dead_letters.c
    known = exists().where(ledger.consumer == c.consumer, ledger.digest == c.digest)
    needed = letters.state.in_((LetterState.DEAD.value, LetterState.REDRIVEN.value))
    dead = exists().where(letters.consumer == c.consumer, letters.digest == c.digest, needed)
    return and_(c.consumer == consumer, c.started_at < before, c.state.not_in(TO_UNDO), ~known, ~dead)
