"""Only what is printable is printed."""

import sys
import unicodedata

import pytest

from consumerkit.observability.printable import _BLANK, is_printable, printable, printable_lines

# Unicode's Default_Ignorable_Code_Point, as another implementation of it (Perl's, of version 14) lists it.
IGNORABLE = """00AD 034F 061C 115F-1160 17B4-17B5 180B-180F 200B-200F 202A-202E 2060-206F 3164 FE00-FE0F FEFF FFA0
FFF0-FFF8 1BCA0-1BCA3 1D173-1D17A E0000-E0FFF"""


def ignorable() -> set[int]:
    found: set[int] = set()
    for one in IGNORABLE.split():
        first, _, last = one.partition("-")
        found.update(range(int(first, 16), int(last or first, 16) + 1))
    return found


@pytest.mark.parametrize(
    "character",
    [
        *("\u061c", "\u200b", "\ufeff", "\u2060", "\U000e0041", "\u202e", "\u2028", "\x1b", "\x9b"),
        *("\ufe00", "\ufe0f", "\U000e0100", "\U000e01ef", "\u3164", "\uffa0", "\u115f", "\u034f", "\u180b", "\u17b4"),
    ],
)
def test_what_cannot_be_seen_or_turns_the_writing_is_escaped(character: str) -> None:
    assert printable(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"
    assert not is_printable(f"a{character}b")


def test_of_all_characters_only_those_of_printable_categories_remain() -> None:
    unseen = ignorable()
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        kept = printable(character) == character
        wanted = number not in unseen and (character == " " or unicodedata.category(character)[0] not in "CZ")
        wanted = wanted and not _BLANK.match(character)
        assert kept == wanted, hex(number)


def test_lines_stay_lines() -> None:
    assert printable_lines("a\n\u200bb\r") == "a\n\\u200bb\\r"


@pytest.mark.parametrize(
    "blank",
    ["\u2800", "\u303f", "\u2d7f", "\U0001107f", "\U00011a47", "\U00013441", "\U00016fe4", "\U0001d159"],
    ids=ascii,
)
def test_what_has_an_empty_glyph_is_escaped(blank: str) -> None:
    assert not is_printable(f"pa{blank}id")
    assert printable(f"pa{blank}id").isascii()


@pytest.mark.parametrize("seen", ["\u2801", "\u2422", "\U0001d157", "\ua8f9", "\u2205", "မြန်မာ", "हिन्दी"], ids=ascii)
def test_what_is_seen_stays(seen: str) -> None:
    assert printable(seen) == seen
