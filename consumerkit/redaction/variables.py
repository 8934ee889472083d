"""Cuts the values of PostgreSQL's variables from a driver's words about variables that it cannot read."""

from __future__ import annotations

import os
from typing import Final

from consumerkit.redaction.plain_words import is_plain
from consumerkit.redaction.text import HIDDEN

_SECRET: Final = ("PGPASSWORD", "PGSSLPASSWORD")
_SHORTEST: Final = 3


def without_variables(text: str) -> str:
    """Return a text without the values of PostgreSQL's variables that do not look like names.

    Example:
        >>> without_variables("connection refused")
        'connection refused'
    """
    for name, value in os.environ.items():
        if name.startswith("PG") and len(value) >= _SHORTEST and (name in _SECRET or not is_plain(value)):
            text = text.replace(value, HIDDEN).replace(repr(value)[1:-1], HIDDEN)
    return text
