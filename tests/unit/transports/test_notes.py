"""A committed offset's text is read as it was written, whatever the client returns behind it."""

from __future__ import annotations

import pytest

from consumerkit.engine.partitions.start_position import note, noted_start
from consumerkit.transports.notes import closed, note_of


class Returned:
    """What librdkafka returns: the text, and what lies behind it in memory up to a zero byte."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    @property
    def metadata(self) -> str:
        return self._text.decode()


@pytest.mark.parametrize("behind", [b"", b"7", b"\x8e\x01", b"\n7", "é".encode()])
def test_what_lies_behind_a_note_is_no_part_of_it(behind: bytes) -> None:
    text = note("credit-account", 17)
    found = note_of(Returned(closed(text).encode() + behind))
    assert found == text
    assert noted_start("credit-account", found) == 17


@pytest.mark.parametrize("behind", [b"", b"\x8e\x01", b"x"])
def test_an_older_releases_note_is_ours_too(behind: bytes) -> None:
    found = note_of(Returned(note("credit-account", 17).encode() + behind))
    assert noted_start("credit-account", found) == 17


def test_another_programs_text_comes_as_it_is() -> None:
    assert note_of(Returned(b"")) == closed("") == ""
    assert note_of(Returned(b"mine")) == "mine"
