"""The actions on dead letters: redrive them, or close them by a person's decision."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, update

from consumerkit.errors import StartError
from consumerkit.handlers.handler import Ordering
from consumerkit.handlers.message_id import WHOLE_VALUE
from consumerkit.message import Message
from consumerkit.outcome import Outcome, Reason
from consumerkit.redrive.batch import LetterResult, LockedLetters
from consumerkit.redrive.decision import Identified, RedriveResult, decide, identified
from consumerkit.redrive.plan import PartitionLetters
from consumerkit.storage.dead_letters import history
from consumerkit.storage.dead_letters.letters import State, known, resolved
from consumerkit.storage.dialects import Claim, Kept
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.origins import MARK, Origin, home
from consumerkit.storage.parking import redriven
from consumerkit.storage.parking.parked import Kind
from consumerkit.storage.parking.places import stands_for
from consumerkit.storage.parking.redriven import COPIED, Comeback
from consumerkit.storage.payload import payload
from consumerkit.storage.tables import Tables
from consumerkit.storage.undoing import undo_rows

_log = logging.getLogger(__name__)


class LettersMoved(Exception):
    """The ledger changed between two of our statements: repeat the transaction."""


@dataclass(frozen=True, slots=True)
class Redrive:
    """Parks dead letters again; their partition's owner runs them.

    Attributes:
        max_redrives: How often a letter may be redriven.
        new_id: Whether to redrive conflicts, under an ID of their own.
        note: The reason; kept in the letters' history.
    """

    max_redrives: int
    new_id: bool = False
    note: str = ""
    name: str = "redrive"

    def check(self, log: PartitionLetters) -> None:
        """See `Action.check`."""
        if log.ordering is None:
            raise StartError(
                f"handler {log.handler!r} has not started with this version of consumerkit, so the order of its "
                "letters is not known; start it once, then redrive"
            )

    def details(self) -> dict[str, Any]:
        """See `Action.details`."""
        return {"note": self.note} if self.note else {}

    def carry_out(self, scene: LockedLetters, numbers: Sequence[int], by: str) -> list[LetterResult]:
        """See `Action.carry_out`."""
        connection, tables = scene.connection, scene.lot.tables
        # Ledger rows are locked before letters, in the same order as by an engine that resolves a letter.
        kept = self._kept(scene, numbers)
        letters = locked(connection, tables, numbers, dry=scene.dry)
        standing, others = _standing(scene, letters)
        told: list[LetterResult] = []
        going: dict[int, Identified] = {}
        taken: set[bytes] = set()
        for letter in sorted(letters, key=lambda one: one.offset):
            identity = identified(letter, new_id=self.new_id)
            held = None if identity.digest is None else kept.get(identity.digest)
            result = decide(
                letter,
                identity,
                held,
                standing.get(origin(letter)),
                taken,
                new_id=self.new_id,
                max_redrives=self.max_redrives,
            )
            told.append(LetterResult(letter, result))
            if result is RedriveResult.REDRIVEN:
                going[letter.id] = _completed(scene.lot.tables, letter, identity, held)
                taken |= {identity.digest} if identity.digest is not None else set()
        if not scene.dry:
            self._go(scene, [_beside(scene, one, others) for one in told], going, kept, by)
        return told

    def _kept(self, scene: LockedLetters, numbers: Sequence[int]) -> dict[bytes, Kept]:
        c = scene.lot.tables.dead_letters.c
        asked = select(c.id, c.digest, c.reason, c.message_id, c.fingerprint, c.fingerprint_version).where(
            c.id.in_(numbers)
        )
        rows = scene.connection.execute(asked).all()
        digests = {identified(row, new_id=self.new_id).digest for row in rows} - {None}
        return _locked_ledger(scene, sorted(digest for digest in digests if digest is not None))

    def _go(
        self,
        scene: LockedLetters,
        told: Sequence[LetterResult],
        going: Mapping[int, Identified],
        kept: Mapping[bytes, Kept],
        by: str,
    ) -> None:
        moved = [one.letter for one in told if one.result is RedriveResult.REDRIVEN]
        undos = [letter for letter in moved if letter.reason == Reason.UNDO_FAILED]
        undo_rows(scene.lot).again(scene.connection, [letter.id for letter in undos])
        for letter in undos:
            _write(scene, letter, State.REDRIVEN, "redriven", by, self.note, redrives=letter.redrives + 1)
        moved = [letter for letter in moved if letter.reason != Reason.UNDO_FAILED]
        _claim(scene, [going[letter.id] for letter in moved], kept)
        ordering = scene.log.ordering
        redriven.bring_back(
            scene.lot,
            scene.connection,
            [_comeback(letter, going[letter.id]) for letter in moved],
            ordered=ordering is not Ordering.NONE,
            any_key=ordering is Ordering.PARTITION,
        )
        for letter in moved:
            _write(scene, letter, State.REDRIVEN, "redriven", by, self.note, redrives=letter.redrives + 1)
        succeeded = [one.letter for one in told if one.result is RedriveResult.SUCCEEDED]
        for letter in succeeded:
            _write(scene, letter, State.RESOLVED, "resolved", by, "its message ID was processed since")
        _release(scene, succeeded)


@dataclass(frozen=True, slots=True)
class Close:
    """Closes dead letters by a person's decision: resolved outside consumerkit, or discarded.

    A resolved letter's message ID then counts as processed, so a resend does not repeat what the person did. A
    discarded letter's message ID stays dead.
    """

    state: State
    note: str

    @property
    def name(self) -> str:
        """The name in the audit record."""
        return "resolve" if self.state is State.RESOLVED else "discard"

    def check(self, log: PartitionLetters) -> None:
        """See `Action.check`."""

    def details(self) -> dict[str, Any]:
        """See `Action.details`."""
        return {"note": self.note}

    def carry_out(self, scene: LockedLetters, numbers: Sequence[int], by: str) -> list[LetterResult]:
        """See `Action.carry_out`."""
        done = RedriveResult.RESOLVED if self.state is State.RESOLVED else RedriveResult.DISCARDED
        if not scene.dry and self.state is State.RESOLVED:
            self._settle(scene, numbers)
        letters = locked(scene.connection, scene.lot.tables, numbers, dry=scene.dry)
        if not scene.dry:
            for letter in letters:
                _write(scene, letter, self.state, self.state.value, by, self.note)
            undos = [letter.id for letter in letters if letter.reason == Reason.UNDO_FAILED]
            undo_rows(scene.lot).decide(scene.connection, undos, undone=self.state is State.RESOLVED)
            _release(scene, letters)
        return [LetterResult(letter, done) for letter in letters]

    def _settle(self, scene: LockedLetters, numbers: Sequence[int]) -> None:
        c = scene.lot.tables.dead_letters.c
        asked = select(c.digest).where(c.id.in_(numbers), c.digest.is_not(None), c.reason != Reason.CONFLICT.value)
        digests = sorted(bytes(digest) for digest in scene.connection.execute(asked).scalars())
        dead = [d for d, kept in _locked_ledger(scene, digests).items() if kept.outcome is Outcome.DEAD]
        ledger = Ledger(scene.lot.tables, scene.lot.dialect, scene.lot.consumer)
        ledger.revive(scene.connection, dead, Outcome.PROCESSED)


def locked(connection: Connection, tables: Tables, numbers: Sequence[int], *, dry: bool) -> list[Any]:
    """Return the letters that are still dead; locks them in the order of their IDs, except in a dry run."""
    table = tables.dead_letters
    query = select(table).where(table.c.id.in_(numbers), table.c.state == State.DEAD.value).order_by(table.c.id)
    return list(connection.execute(query if dry else query.with_for_update()))


def origin(letter: Any) -> Origin:
    """Return the place of a letter's message in the log."""
    return (letter.topic_id, letter.partition, letter.offset)


def _standing(scene: LockedLetters, letters: Sequence[Any]) -> tuple[dict[Origin, Kind], set[int]]:
    """Return the parked rows of these letters' messages, and the letters whose place another message has."""
    lot, connection = scene.lot, scene.connection
    rows = redriven.standing(lot, connection, [origin(one) for one in letters])
    mine: dict[Origin, Kind] = {}
    others: set[int] = set()
    for letter in letters:
        row = rows.get(origin(letter))
        if row is None:
            continue
        if row.dead_letter == letter.id or stands_for(lot, connection, row).agrees(known(letter, lot.tables)):
            mine[origin(letter)] = Kind(row.kind)
        else:
            others.add(letter.id)
    return mine, others


def _beside(scene: LockedLetters, told: LetterResult, others: Collection[int]) -> LetterResult:
    """Give a letter an origin of its own if another message is parked at its place."""
    letter = told.letter
    if told.result is not RedriveResult.REDRIVEN or letter.id not in others:
        return told
    table = scene.lot.tables.dead_letters
    topic_id = f"{home(letter.topic_id)}{MARK}{letter.id}"
    scene.connection.execute(update(table).where(table.c.id == letter.id).values(topic_id=topic_id))
    _log.error(
        "dead letter %s has the place %s[%s]@%s, where another message is parked: it gets an origin of its own",
        letter.id, letter.topic, letter.partition, letter.offset,
    )  # fmt: skip
    found = scene.connection.execute(select(table).where(table.c.id == letter.id)).one()
    return LetterResult(found, told.result)


def _locked_ledger(scene: LockedLetters, digests: Sequence[bytes]) -> dict[bytes, Kept]:
    c = scene.lot.tables.processed_messages.c
    query = select(c.digest, c.fingerprint, c.outcome, c.fingerprint_version).order_by(c.digest)
    query = query.where(c.consumer == scene.lot.consumer, c.digest.in_(digests))
    rows = scene.connection.execute(query if scene.dry else query.with_for_update())
    return {bytes(one.digest): Kept(bytes(one[1]), Outcome(one.outcome), one.fingerprint_version) for one in rows}


def _completed(tables: Tables, letter: Any, identity: Identified, kept: Kept | None) -> Identified:
    """Return an identity with a fingerprint, which letters of older versions lack."""
    if identity.fingerprint is not None or identity.digest is None:
        return identity
    if kept is not None:
        return Identified(identity.digest, identity.message_id, kept.fingerprint, kept.version)
    if letter.reason == Reason.CONFLICT:
        value = payload(tables.sealer, letter).value
        message = Message(letter.topic, letter.partition, letter.offset, value=value)
        return Identified(identity.digest, identity.message_id, WHOLE_VALUE.of(message, None))
    # The fingerprint is unknown here and in the ledger: ID and fingerprint are read from the message when it runs.
    return Identified(None, identity.message_id, None)


def _claim(scene: LockedLetters, going: Sequence[Identified], kept: Mapping[bytes, Kept]) -> None:
    """Mark the IDs as parked in the ledger: dead ones, and those that it does not know."""
    ledger = Ledger(scene.lot.tables, scene.lot.dialect, scene.lot.consumer)
    digests = [one.digest for one in going if one.digest is not None]
    dead = [digest for digest in digests if digest in kept]
    claims = [
        Claim(one.digest, one.message_id or "(none)", one.fingerprint, Outcome.PARKED, one.version)
        for one in going
        if one.digest is not None and one.digest not in kept and one.fingerprint is not None
    ]
    if len(ledger.revive(scene.connection, dead, Outcome.PARKED)) != len(dead):
        raise LettersMoved
    if len(ledger.claim(scene.connection, claims).won) != len(claims):
        raise LettersMoved


def _comeback(letter: Any, identity: Identified) -> Comeback:
    return Comeback(
        letter=letter.id,
        record={name: getattr(letter, name) for name in COPIED},
        digest=identity.digest,
        message_id=identity.message_id,
        fingerprint=identity.fingerprint or b"",
        fingerprint_version=identity.version,
    )


def _release(scene: LockedLetters, letters: Sequence[Any]) -> None:
    if letters:
        any_key = scene.log.ordering is Ordering.PARTITION
        redriven.release(scene.lot, scene.connection, [letter.id for letter in letters], any_key=any_key)


def _write(scene: LockedLetters, letter: Any, state: State, what: str, by: str, note: str, **values: Any) -> None:
    table = scene.lot.tables.dead_letters
    entry = history.entry(
        what,
        by,
        note=note,
        reason=letter.reason,
        error_type=letter.error_type,
        error=letter.error,
        place=letter.place,
        attempts=letter.attempts,
        dead_at=letter.dead_at,
    )
    columns = resolved() if state is State.RESOLVED else {"state": state.value, "state_at": func.now()}
    told = {"history": history.extended(letter.history, entry), **columns, **values}
    scene.connection.execute(update(table).where(table.c.id == letter.id).values(**told))
