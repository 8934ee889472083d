"""Turns a record of a dead-letter topic into a letter to enter: reads, places and prepares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from consumerkit.dead_letters import formats
from consumerkit.dead_letters.formats import Convention, LetterRecord, MalformedRecord, Unrecognised
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.delivery import Decided, Delivery
from consumerkit.engine.transaction.failures import STACK_BYTES, TEXT_CHARACTERS
from consumerkit.engine.transaction.prepare import Preparer
from consumerkit.errors import Unavailable
from consumerkit.handlers.declaration import Declaration
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.redaction.text import redact
from consumerkit.redrive.importing.insert import Candidate
from consumerkit.redrive.importing.report import ImportResult, Line, place_of
from consumerkit.redrive.importing.route import Placed, Settled, Unplaced, placed
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.transports.base import TopicInfo

_KIND_CHARACTERS: Final = 300
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Screened:
    """A record after all checks that need no database.

    Attributes:
        line: The report's line; its result is still open if there is a candidate.
        candidate: The letter to enter; None if the record is left alone.
    """

    line: Line
    candidate: Candidate | None


class Screen:
    """Checks the records of a dead-letter topic for one handler.

    Args:
        declared: The handler.
        topics: The topics that it reads.
        convention: How the records are written.
        as_topic: The topic that takes the letters from elsewhere; None leaves them alone.
        settled: Which places in the topics are the handler's own.
    """

    def __init__(
        self,
        declared: Declaration,
        topics: Mapping[str, TopicInfo],
        convention: Convention,
        as_topic: str | None,
        settled: Settled,
    ) -> None:
        self._declared = declared
        self._topics = topics
        self._convention = convention
        self._as_topic = as_topic
        self._settled = settled
        self._preparer = Preparer(declared)

    def screen(self, record: Message) -> Screened:
        """Check a record; leave it alone if that raises an error.

        Raises:
            Unavailable: A service that decoding needs is down.
        """
        try:
            return self._screened(record)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - a record may hold anything, and the others must be imported
            return _left(record, ImportResult.REFUSED, failures.described(error))

    def _screened(self, record: Message) -> Screened:
        try:
            letter = formats.read(record, self._convention)
        except Unrecognised as error:
            return _left(record, ImportResult.UNRECOGNISED, str(error))
        except MalformedRecord as error:
            return _left(record, ImportResult.MALFORMED, str(error))
        if letter.convention == Convention.CONSUMERKIT and letter.consumer != self._declared.name:
            return _left(record, ImportResult.OTHERS, f"it is a dead letter of handler {letter.consumer!r}", letter)
        if not letter.whole or (letter.reason is Reason.OVERSIZED and letter.value is None):
            return _left(
                record, ImportResult.ABSENT, "the message was too large, and is still in its own topic", letter
            )
        try:
            at = placed(letter, record, self._topics, self._as_topic, self._settled)
        except Unplaced as error:
            return _left(record, ImportResult.UNPLACED, str(error), letter)
        return self._prepared(record, letter, at)

    def _prepared(self, record: Message, letter: LetterRecord, at: Placed) -> Screened:
        prepared = self._preparer.prepare(at.message)
        if prepared is None:
            return _left(record, ImportResult.SKIPPED, "its event type is not declared", letter)
        if prepared.letter is not None and prepared.letter.reason is Reason.OVERSIZED:
            return _left(record, ImportResult.OVERSIZED, prepared.letter.error, letter)
        dead = _dead(prepared, letter)
        why = f"{dead.error_type}: {dead.error}" if dead.error else dead.error_type
        line = _line(record, ImportResult.IMPORTED, why, letter, dead)
        return Screened(line, Candidate(dead, at.place, at.others, self._first_fingerprint(prepared.delivery)))

    def _first_fingerprint(self, delivery: Delivery) -> bytes | None:
        if delivery.digest is None or delivery.fingerprint_version is None:
            return None
        return self._declared.fingerprint.of(delivery.message, delivery.event)


def _dead(prepared: Decided, letter: LetterRecord) -> DeadMessage:
    """Return the row with the letter's own failure, and our failure if the handler cannot read the message either."""
    delivery, ours = prepared.delivery, prepared.letter
    reason, error, message_id = letter.reason, letter.error, delivery.message_id or None
    if ours is not None:
        reason, message_id = ours.reason, ours.message_id
        if letter.reason is not reason or letter.convention != Convention.CONSUMERKIT:
            error = "; ".join(text for text in (error, f"here: {ours.error}") if text)
    return DeadMessage(
        message=delivery.message,
        digest=delivery.digest,
        message_id=message_id,
        reason=reason,
        error_type=_cut(redact(letter.error_type), _KIND_CHARACTERS),
        error=_cut(redact(error), TEXT_CHARACTERS),
        stack=_cut_bytes(redact(letter.stack)),
        attempts=letter.attempts,
        first_failed_at=letter.first_failed_at,
        fingerprint=delivery.fingerprint or None,
        fingerprint_version=delivery.fingerprint_version,
        place=None if letter.place is None else _cut(letter.place, _KIND_CHARACTERS),
    )


def _left(record: Message, result: ImportResult, why: str, letter: LetterRecord | None = None) -> Screened:
    return Screened(_line(record, result, why, letter, None), None)


def _line(
    record: Message, result: ImportResult, why: str, letter: LetterRecord | None, dead: DeadMessage | None
) -> Line:
    known: dict[str, Any] = {}
    if letter is not None:
        known |= {"origin": letter.origin, "reason": letter.reason}
    if dead is not None:
        known |= {"message_id": dead.message_id, "reason": dead.reason}
    return Line(record=place_of(record), result=result, why=_cut(why, _SHOWN), **known)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _cut_bytes(stack: str) -> str:
    """Cut a stack at its end: Java's stacks begin with the important part, and ours was cut when it was written."""
    raw = stack.encode("utf-8", "backslashreplace")
    return raw[:STACK_BYTES].decode("utf-8", "ignore")
