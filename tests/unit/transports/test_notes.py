"""A committed offset's text is read as it was written, whatever the client returns behind it."""

from __future__ import annotations

import re

import pytest

from consumerkit.engine.partitions.commit_origin import CommitNote, CommitOrigin
from consumerkit.engine.partitions.start_position import noted_start
from consumerkit.handlers.attributes import NAME_CHARACTERS
from consumerkit.transports.notes import closed, note_of

HERE, THERE = "00c0ffee00c0ffee", "0123456789abcdef"


class Returned:
    """What librdkafka returns: the text, and what lies behind it in memory up to a zero byte."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    @property
    def metadata(self) -> str:
        return self._text.decode()


@pytest.mark.parametrize("behind", [b"", b"7", b"\x8e\x01", b"\n7", "é".encode()])
def test_what_lies_behind_a_note_is_no_part_of_it(behind: bytes) -> None:
    text = CommitNote("credit-account", 17, HERE).written()
    found = note_of(Returned(closed(text).encode() + behind))
    assert found == text
    assert CommitNote.read(found) == ("credit-account", 17, HERE)
    assert noted_start("credit-account", found) == 17


@pytest.mark.parametrize("behind", [b"", b"\x8e\x01", b"x"])
def test_an_older_releases_note_is_ours_too(behind: bytes) -> None:
    found = note_of(Returned(b"consumerkit credit-account start=17" + behind))
    assert noted_start("credit-account", found) == 17


def test_another_programs_text_comes_as_it_is() -> None:
    assert note_of(Returned(b"")) == closed("") == ""
    assert note_of(Returned(b"mine")) == "mine"


def test_an_older_release_reads_a_note_that_names_a_database() -> None:
    older = re.compile(r"consumerkit (?P<handler>\S+) start=(?P<start>\d+)")
    found = older.match(CommitNote("credit-account", 17, HERE).written())
    assert found is not None
    assert (found["handler"], found["start"]) == ("credit-account", "17")


def test_the_longest_note_is_far_below_what_brokers_keep() -> None:
    assert len(CommitNote("n" * NAME_CHARACTERS, 2**63, HERE).written().encode()) < 4096


@pytest.mark.parametrize(
    "note, strange",
    [
        (CommitNote("credit", 5, HERE), False),
        (CommitNote("renamed", 5, HERE), False),  # a matter of this database's own table
        (CommitNote("credit", 5), False),  # an older release's
        (CommitNote("other", 5), False),  # the same: nothing tells which database it worked on
        (CommitNote("credit", 5, THERE), True),
        (CommitNote("other", 5, THERE), True),
    ],
)
def test_another_databases_commits_are_told_from_our_own(note: CommitNote, strange: bool) -> None:
    origin = CommitOrigin("credit", "the-group", HERE)
    refusal = origin.refusal(note.written())
    assert (refusal is not None) == strange
    if refusal is not None:
        assert refusal.startswith(f"group 'the-group' is used by handler {note.handler!r} on another database, too")
        assert "start once with --adopt credit" in refusal
    assert CommitOrigin("credit", "the-group", HERE, adopted=True).refusal(note.written()) is None


@pytest.mark.parametrize("text", ["", "mine", "consumerkit", "\x8e"])
def test_what_another_program_committed_is_not_refused(text: str) -> None:
    assert CommitOrigin("credit", "g", HERE).refusal(text) is None
