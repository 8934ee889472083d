"""Makes text from outside safe for a terminal and for a log of one line per event."""

from __future__ import annotations

import re
from typing import Final

# Unicode's property Default_Ignorable_Code_Point: its characters are shown as nothing. Taken from
# its database (DerivedCoreProperties.txt, the same in versions 14 to 16), including characters that
# have no name yet.
_IGNORABLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Characters of other categories whose glyph is empty, by Unicode's charts: no property says so. By
# their names they are blanks, fillers, joiners and a note without a head. Visible characters with
# such names (gap fillers) are excluded.
_BLANK: Final = re.compile("[\u2800\u2d7f\u303f\U0001107f\U00011a47\U00011a99\U00013441\U00013442\U00016fe4\U0001d159]")


def is_printable(text: str) -> bool:
    """Return whether each character of a text can be printed and seen.

    Example:
        >>> is_printable("paid"), is_printable("pa\ufe0fid")
        (True, False)
    """
    return text.isprintable() and _IGNORABLE.search(text) is None and _BLANK.search(text) is None


def printable(text: str) -> str:
    r"""Return text on one line, with characters that cannot be printed or seen written as escapes.

    Three rules decide. Unicode's categories: controls, format characters (which change the
    direction of writing, or cannot be seen), separators other than the space, lone surrogates, and
    unassigned or private characters. Its property Default_Ignorable_Code_Point: variation
    selectors, fillers and joiners, which are shown as nothing. Its charts: characters with an empty
    glyph, such as the blank of Braille.

    Message IDs, error texts and topic names come from producers and handlers; an escape sequence in
    one could forge a log line or take over the reader's terminal.

    Example:
        >>> print(printable("paid\n\x1b[2J"))
        paid\n\x1b[2J
    """
    if is_printable(text):
        return text
    return "".join(each if is_printable(each) else each.encode("unicode_escape").decode() for each in text)


def printable_lines(text: str) -> str:
    r"""Return text with its line breaks, each line made `printable`; for stacks.

    Example:
        >>> print(printable_lines("first\nsecond\x07"))
        first
        second\x07
    """
    return "\n".join(map(printable, text.split("\n")))
