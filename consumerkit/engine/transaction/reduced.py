"""Reduces rows of dead and parked messages that the database refuses to a form that any database stores.

A message must not wait for ever because the database refuses an error's text. Payload and place stay unchanged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from consumerkit.engine.transaction.delivery import Decided, GiveUp, Park

UNSTORABLE: Final = "the database refused this text"


def reduced(decided: Decided) -> Decided | None:
    """Return a reduced form of a message's row; None if nothing is left to reduce.

    The first reduction keeps only printable ASCII; the second one also drops the error's text.
    """
    if decided.reduced > 1:
        return None
    delivery = replace(decided.delivery, message_id=_ascii(decided.delivery.message_id))
    words = _ascii if decided.reduced == 0 else _nothing
    more = _ascii if decided.reduced == 0 else _empty
    intent = decided.intent
    if isinstance(intent, GiveUp):
        letter = intent.letter
        place = _ascii(letter.place) if decided.reduced == 0 and letter.place is not None else None
        smaller = replace(
            letter,
            message_id=None if letter.message_id is None else _ascii(letter.message_id),
            error_type=_ascii(letter.error_type),
            error=words(letter.error),
            stack=more(letter.stack),
            place=place,
        )
        intent = replace(intent, letter=smaller)
    elif isinstance(intent, Park):
        row = intent.row
        intent = Park(
            replace(
                row,
                message_id=_ascii(row.message_id),
                error_type=_ascii(row.error_type),
                error=words(row.error),
                stack=more(row.stack),
            )
        )
    return Decided(delivery, intent, decided.reduced + 1)


def _ascii(text: str) -> str:
    plain = text.encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in plain)


def _nothing(_text: str) -> str:
    return UNSTORABLE


def _empty(_text: str) -> str:
    return ""
