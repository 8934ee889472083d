"""Entering the letters of a dead-letter topic: in the ledger and among the dead letters, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from sqlalchemy import Connection, and_, or_, select

from consumerkit.outcome import Outcome, Reason
from consumerkit.redrive.importing.fates import Fate
from consumerkit.storage import dead_letters
from consumerkit.storage.dead_letters import DeadMessage, Origin
from consumerkit.storage.dialects import Claim, Kept
from consumerkit.storage.ledger import Ledger

Place = tuple[str, int | None, int]


class LedgerMoved(Exception):
    """A ledger row was there, and was pruned while it was being read: enter the same letters once more."""


class Entry(NamedTuple):
    """What became of a letter, and its row's ID where it has one."""

    fate: Fate
    letter: int | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A letter to enter.

    Attributes:
        dead: Its row.
        at_home: Whether its partition is part of its origin; see `consumerkit.redrive.importing.placing`.
        first_fingerprint: Its fingerprint in the first version; None where the row's own is.
    """

    dead: DeadMessage
    at_home: bool
    first_fingerprint: bytes | None = None

    @property
    def place(self) -> Place:
        """What makes it unique among the handler's letters."""
        message = self.dead.message
        return message.topic_id, message.partition if self.at_home else None, message.offset

    @property
    def claim(self) -> Claim | None:
        """The ledger's row that it needs, if any: a conflict's ID is another message's."""
        dead = self.dead
        if dead.digest is None or dead.fingerprint is None or dead.reason is Reason.CONFLICT:
            return None
        return Claim(dead.digest, dead.message_id or "", dead.fingerprint, Outcome.DEAD, dead.fingerprint_version)


class Register:
    """Enters letters for one handler; a dry run writes nothing, and remembers what it would have written.

    Args:
        ledger: The handler's.
        dry_run: Whether to write nothing.
    """

    def __init__(self, ledger: Ledger, *, dry_run: bool) -> None:
        self.ledger = ledger
        self.dry_run = dry_run
        self._places: set[Place] = set()
        self._claims: dict[bytes, Kept] = {}

    def enter(self, connection: Connection, candidates: Sequence[Candidate]) -> list[Entry]:
        """Enter letters in the caller's transaction, and return what became of each.

        A letter that is there already, whatever became of it, stays as it is. An ID that was processed, or that waits
        for its next attempt, makes no dead letter; an ID under which another payload is known makes a conflict.

        Raises:
            LedgerMoved: Roll back, and enter them once more.
        """
        taken: dict[Place, int | None] = {**self._present(connection, candidates), **dict.fromkeys(self._places)}
        entries = [Entry(Fate.PRESENT, taken.get(candidate.place)) for candidate in candidates]
        fresh: list[int] = []
        for at, candidate in enumerate(candidates):
            if candidate.place not in taken:
                taken[candidate.place] = None
                fresh.append(at)
        claims = [claim for at in fresh if (claim := candidates[at].claim) is not None]
        known = self._claimed(connection, claims)
        fates = {at: _fate(candidates[at], known) for at in fresh}
        added = self._added(connection, [(candidates[at], fates[at]) for at in fresh if fates[at].is_import])
        for at, fate in fates.items():
            number = added.get(dead_letters.origin(candidates[at].dead.message))
            # An import that finds its letter there after all: another one was faster.
            entries[at] = Entry(Fate.PRESENT if fate.is_import and number is None else fate, number)
        return entries

    def _present(self, connection: Connection, candidates: Sequence[Candidate]) -> dict[Place, int]:
        """Return the places of those that are there: from elsewhere, the same origin may be in another partition."""
        c = self.ledger.tables.dead_letters.c
        asked: dict[tuple[str, int | None], list[int]] = {}
        for candidate in candidates:
            topic_id, partition, offset = candidate.place
            asked.setdefault((topic_id, partition), []).append(offset)
        if not asked:
            return {}
        conditions = [
            and_(c.topic_id == topic_id, *(() if partition is None else (c.partition == partition,)), c.offset.in_(at))
            for (topic_id, partition), at in asked.items()
        ]
        rows = connection.execute(
            select(c.id, c.topic_id, c.partition, c.offset).where(c.consumer == self.ledger.consumer, or_(*conditions))
        )
        found: dict[Place, int] = {}
        for number, topic_id, partition, offset in rows:
            found |= {(topic_id, partition, offset): number, (topic_id, None, offset): number}
        return found

    def _claimed(self, connection: Connection, claims: Sequence[Claim]) -> dict[bytes, Kept]:
        """Claim the IDs that nobody holds as dead ones; return what the ledger holds for each now."""
        first = {claim.digest: claim for claim in reversed(claims)}
        if self.dry_run:
            kept = self.ledger.dialect.kept(connection, self.ledger.consumer, list(first)) if first else {}
            kept |= {digest: self._claims[digest] for digest in first if digest in self._claims}
            won = first.keys() - kept.keys()
        else:
            won, kept = self.ledger.claim(connection, first.values())
        if len(won) + len(kept) < len(first):
            raise LedgerMoved
        return {**kept, **{digest: _kept(first[digest]) for digest in won}}

    def _added(self, connection: Connection, new: Sequence[tuple[Candidate, Fate]]) -> dict[Origin, int]:
        """Add letters, and return the IDs of those that were not there; in a dry run no IDs."""
        if self.dry_run:
            self._places |= {candidate.place for candidate, _ in new}
            for candidate, fate in new:
                if fate is Fate.IMPORTED and (claim := candidate.claim) is not None:
                    self._claims.setdefault(claim.digest, _kept(claim))
            return {dead_letters.origin(candidate.dead.message): 0 for candidate, _ in new}
        rows = [candidate.dead if fate is Fate.IMPORTED else as_conflict(candidate.dead) for candidate, fate in new]
        added = dead_letters.add(connection, self.ledger.tables, self.ledger.consumer, rows)
        return {origin: letter.id for origin, letter in added.items()}


def _kept(claim: Claim) -> Kept:
    return Kept(claim.fingerprint, Outcome.DEAD, claim.fingerprint_version)


def as_conflict(dead: DeadMessage) -> DeadMessage:
    """Return a letter whose ID belongs to another payload: never run under that ID."""
    before = f"{dead.reason.value}: {dead.error_type}: {dead.error}"
    text = f"another payload is known under this message ID; it died of: {before}"
    return replace(dead, reason=Reason.CONFLICT, error_type="Conflict", error=text)


def _fate(candidate: Candidate, known: dict[bytes, Kept]) -> Fate:
    claim = candidate.claim
    if claim is None:
        return Fate.IMPORTED
    kept = known[claim.digest]
    in_its_version = claim.fingerprint if kept.version == claim.fingerprint_version else candidate.first_fingerprint
    if kept.fingerprint != in_its_version:
        return Fate.CONFLICT
    if kept.outcome is Outcome.PROCESSED:
        return Fate.PROCESSED
    return Fate.PARKED if kept.outcome is Outcome.PARKED else Fate.IMPORTED
