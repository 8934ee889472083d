"""Text from strangers, made safe for a terminal and for a log of one line per event."""

from __future__ import annotations

import re

# C0 and C1 controls, the line and paragraph separators, what turns the direction of writing, and lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return text on one line, without control characters: each is written as its escape.

    Message IDs, error texts and topic names come from producers and handlers; an escape sequence in one could forge a
    log line or take over the terminal of whoever reads it.

    Example:
        >>> print(printable("paid\n\x1b[2J"))
        paid\n\x1b[2J
    """
    return _UNSAFE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    r"""Return text with its line breaks, each line made `printable`; for stacks.

    Example:
        >>> print(printable_lines("first\nsecond\x07"))
        first
        second\x07
    """
    return "\n".join(map(printable, text.split("\n")))
