"""Words that people type in place of a name: they may be a password or a URL by mistake."""

from __future__ import annotations

import re
from typing import Final

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


def is_plain(word: str) -> bool:
    """Return whether a word looks like a name: of a handler, a topic, a module, a command or a number.

    Example:
        >>> is_plain("shop.worker:worker"), is_plain("postgresql://app:hunter2@db/shop")
        (True, False)
    """
    return _PLAIN.fullmatch(word) is not None


def shown_word(word: object) -> str:
    """Return a word as an error may show it before it is known: quoted if empty or like a name, else `***`.

    Example:
        >>> shown_word("credit-acount"), shown_word("app:hunter2@db"), shown_word(7)
        ("'credit-acount'", '***', '7')
    """
    if isinstance(word, str):
        return repr(word) if is_plain(word) or not word else "***"
    return repr(word) if word is None or isinstance(word, int | float) else "***"
