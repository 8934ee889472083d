"""Only what is printable is printed."""

import sys
import unicodedata

import pytest

from consumerkit.observability.printable import printable, printable_lines


@pytest.mark.parametrize(
    "character", ["\u061c", "\u200b", "\ufeff", "\u2060", "\U000e0041", "\u202e", "\u2028", "\x1b", "\x9b"]
)
def test_what_cannot_be_seen_or_turns_the_writing_is_escaped(character: str) -> None:
    assert printable(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"


def test_of_all_characters_only_those_of_printable_categories_remain() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        kept = printable(character) == character
        assert kept == (character == " " or unicodedata.category(character)[0] not in "CZ"), hex(number)


def test_lines_stay_lines() -> None:
    assert printable_lines("a\n\u200bb\r") == "a\n\\u200bb\\r"
