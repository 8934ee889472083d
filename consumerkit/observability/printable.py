"""Text from strangers, made safe for a terminal and for a log of one line per event."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return text on one line, with what cannot be printed written as its escape.

    That goes by Unicode's categories: controls, format characters (which turn the direction of writing, or cannot be
    seen), separators other than the space, lone surrogates, and what has no meaning yet, or a private one.

    Message IDs, error texts and topic names come from producers and handlers; an escape sequence in one could forge a
    log line or take over the terminal of whoever reads it.

    Example:
        >>> print(printable("paid\n\x1b[2J"))
        paid\n\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def printable_lines(text: str) -> str:
    r"""Return text with its line breaks, each line made `printable`; for stacks.

    Example:
        >>> print(printable_lines("first\nsecond\x07"))
        first
        second\x07
    """
    return "\n".join(map(printable, text.split("\n")))
