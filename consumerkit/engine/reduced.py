"""Dead letters and parked messages in a form that any database stores, where it refuses the whole one.

A message must not wait for ever since an error's words do not fit the database. Payload and place stay as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from consumerkit.engine.item import Item

UNSTORABLE: Final = "the database refused this text"


def reduce(item: Item) -> bool:
    """Reduce what is to be written of an item that is buried or parked, in place.

    The first time nothing but printable ASCII is left, the second time no words of an error.

    Returns:
        Whether there was anything left to reduce.
    """
    step = item.reduced
    if step > 1:
        return False
    item.reduced += 1
    item.message_id = _ascii(item.message_id)
    words = _ascii if step == 0 else _nothing
    if (dead := item.dead) is not None:
        item.dead = replace(
            dead,
            message_id=None if dead.message_id is None else _ascii(dead.message_id),
            error_type=_ascii(dead.error_type),
            error=words(dead.error),
            stack=_ascii(dead.stack) if step == 0 else "",
            place=_ascii(dead.place) if step == 0 and dead.place is not None else None,
        )
    if (parking := item.parking) is not None:
        item.parking = replace(
            parking,
            message_id=_ascii(parking.message_id),
            error_type=_ascii(parking.error_type),
            error=words(parking.error),
            stack=_ascii(parking.stack) if step == 0 else "",
        )
    return True


def _ascii(text: str) -> str:
    plain = text.encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in plain)


def _nothing(_text: str) -> str:
    return UNSTORABLE
