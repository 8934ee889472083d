"""Enters the letters of a dead-letter topic in the ledger and the dead-letter table, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from sqlalchemy import Connection, and_, or_, select

from consumerkit.outcome import Outcome, Reason
from consumerkit.redrive.importing.report import ImportResult
from consumerkit.redrive.importing.route import Place
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.dead_letters.letters import DeadMessage, beside, identified, known
from consumerkit.storage.dialects import Claim, Kept
from consumerkit.storage.ledger import Ledger, LedgerMoved
from consumerkit.storage.origins import MessageIdentity, Origin, home, origin
from consumerkit.storage.portions import portions

# SQLite nests a condition of some hundred parts too deeply.
_CONDITIONS: Final = 100


class Entry(NamedTuple):
    """The result of a letter, and its row's ID or None."""

    result: ImportResult
    letter: int | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A letter to enter.

    Attributes:
        dead: Its row.
        place: Makes it unique among the handler's letters; see `consumerkit.redrive.importing.route`.
        others: Further places at which the same letter may be.
        first_fingerprint: Its fingerprint in the first version; None if the row has that already.
    """

    dead: DeadMessage
    place: Place
    others: tuple[Place, ...] = ()
    first_fingerprint: bytes | None = None

    @property
    def places(self) -> list[Place]:
        """All places where it may be, including those beside another message at the same place."""
        mark = identified(self.dead).mark
        named = (self.place, *self.others)
        return [*named, *((home(topic_id) + mark, partition, offset) for topic_id, partition, offset in named)]

    @property
    def beside(self) -> Candidate:
        """The same letter under an origin of its own."""
        dead = beside(self.dead)
        return replace(self, dead=dead, place=(dead.message.topic_id, *self.place[1:]))

    @property
    def claim(self) -> Claim | None:
        """The ledger's row that it needs, or None; a conflict's ID belongs to another message."""
        dead = self.dead
        if dead.digest is None or dead.fingerprint is None or dead.reason is Reason.CONFLICT:
            return None
        return Claim(dead.digest, dead.message_id or "", dead.fingerprint, Outcome.DEAD, dead.fingerprint_version)


class Register:
    """Enters letters for one handler; a dry run writes nothing, but remembers what it would have written.

    Args:
        ledger: The handler's ledger.
        dry_run: Whether to write nothing.
    """

    def __init__(self, ledger: Ledger, *, dry_run: bool) -> None:
        self.ledger = ledger
        self.dry_run = dry_run
        self._places: dict[Place, list[_There]] = {}
        self._claims: dict[bytes, Kept] = {}

    def enter(self, connection: Connection, candidates: Sequence[Candidate]) -> list[Entry]:
        """Enter letters in the caller's transaction, and return the result of each.

        A letter that exists already stays unchanged in whatever state; it is the same one if ID and fingerprint agree.
        If another letter has its place, it is entered beside that one. An ID that was processed or waits for its next
        attempt makes no dead letter. An ID that is known with another payload makes a conflict.

        Raises:
            LedgerMoved: The caller must roll back and enter them again.
        """
        there = self._present(connection, candidates)
        entries: dict[int, Entry] = {}
        fresh: dict[int, Candidate] = {}
        for at, candidate in enumerate(candidates):
            same = _same(candidate, there)
            if same is not None:
                entries[at] = Entry(ImportResult.PRESENT, same.letter)
                continue
            fresh[at] = candidate.beside if there.get(candidate.place) else candidate
            there.setdefault(fresh[at].place, []).append(_There(None, identified(candidate.dead)))
        claims = [claim for candidate in fresh.values() if (claim := candidate.claim) is not None]
        known_ids = self._claimed(connection, claims)
        results = {at: _result(candidate, known_ids) for at, candidate in fresh.items()}
        added = self._added(connection, [(one, results[at]) for at, one in fresh.items() if results[at].is_import])
        for at, result in results.items():
            number = added.get(origin(fresh[at].dead.message))
            if result is ImportResult.IMPORTED and fresh[at] is not candidates[at]:
                result = ImportResult.BESIDE  # noqa: PLW2901 - the same result, more precisely
            # An import without a number: another import has entered the letter first.
            entries[at] = Entry(ImportResult.PRESENT if result.is_import and number is None else result, number)
        return [entries[at] for at in range(len(candidates))]

    def _present(self, connection: Connection, candidates: Sequence[Candidate]) -> dict[Place, list[_There]]:
        """Return the letters at their places; an origin from elsewhere may be in another partition."""
        table = self.ledger.tables.dead_letters
        c = table.c
        asked: dict[tuple[str, int | None], set[int]] = {}
        for topic_id, partition, offset in (place for candidate in candidates for place in candidate.places):
            asked.setdefault((topic_id, partition), set()).add(offset)
        found: dict[Place, list[_There]] = {at: list(some) for at, some in self._places.items()}
        if not asked:
            return found
        conditions = [
            and_(c.topic_id == topic_id, *(() if partition is None else (c.partition == partition,)), c.offset.in_(at))
            for (topic_id, partition), at in asked.items()
        ]
        for some in portions(conditions, _CONDITIONS):
            for row in connection.execute(select(table).where(c.consumer == self.ledger.consumer, or_(*some))):
                one = _There(row.id, known(row, self.ledger.tables))
                for partition in (row.partition, None):
                    found.setdefault((row.topic_id, partition, row.offset), []).append(one)
        return found

    def _claimed(self, connection: Connection, claims: Sequence[Claim]) -> dict[bytes, Kept]:
        """Claim free IDs as dead ones; return the ledger's present row of each ID."""
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

    def _added(self, connection: Connection, new: Sequence[tuple[Candidate, ImportResult]]) -> dict[Origin, int]:
        """Add letters, and return the IDs of the new ones; in a dry run each ID is 0."""
        if self.dry_run:
            for candidate, result in new:
                self._places.setdefault(candidate.place, []).append(_There(None, identified(candidate.dead)))
                if result is ImportResult.IMPORTED and (claim := candidate.claim) is not None:
                    self._claims.setdefault(claim.digest, _kept(claim))
            return {origin(candidate.dead.message): 0 for candidate, _ in new}
        rows = [
            candidate.dead if result is ImportResult.IMPORTED else as_conflict(candidate.dead)
            for candidate, result in new
        ]
        added = dead_letters.add(connection, self.ledger.tables, self.ledger.consumer, rows)
        return {origin: letter.id for origin, letter in added.items()}


def _kept(claim: Claim) -> Kept:
    return Kept(claim.fingerprint, Outcome.DEAD, claim.fingerprint_version)


class _There(NamedTuple):
    """A letter at a place, with its ID if it has a row."""

    letter: int | None
    identity: MessageIdentity


def _same(candidate: Candidate, there: dict[Place, list[_There]]) -> _There | None:
    """Return the letter at one of its places that is the same: ID and fingerprint agree, or the content is equal.

    An ID derived from the place may have changed when the handler got further.
    """
    own = identified(candidate.dead)
    found = (one for place in candidate.places for one in there.get(place, ()))
    return next((one for one in found if own.agrees(one.identity) or own.holds_the_same(one.identity)), None)


def as_conflict(dead: DeadMessage) -> DeadMessage:
    """Return the letter as a conflict: its ID belongs to another payload, so it never runs under that ID."""
    before = f"{dead.reason.value}: {dead.error_type}: {dead.error}"
    text = f"another payload is known under this message ID; its own error was: {before}"
    return replace(dead, reason=Reason.CONFLICT, error_type="Conflict", error=text)


def _result(candidate: Candidate, known: dict[bytes, Kept]) -> ImportResult:
    claim = candidate.claim
    if claim is None:
        return ImportResult.IMPORTED
    kept = known[claim.digest]
    in_its_version = claim.fingerprint if kept.version == claim.fingerprint_version else candidate.first_fingerprint
    if kept.fingerprint != in_its_version:
        return ImportResult.CONFLICT
    if kept.outcome is Outcome.PROCESSED:
        return ImportResult.PROCESSED
    return ImportResult.PARKED if kept.outcome is Outcome.PARKED else ImportResult.IMPORTED
