"""A dead letter's history."""

import json

from consumerkit.storage.dead_letters import history


def test_what_is_unknown_is_left_out_and_texts_are_cut() -> None:
    made = history.entry("redriven", "ann", note="", reason="exhausted", error="x" * 9999, place=None, attempts=0)
    assert made.keys() == {"at", "what", "by", "reason", "error", "attempts"}
    assert len(made["error"]) == history.TEXT_CHARACTERS


def test_the_oldest_entries_go_where_there_are_too_many() -> None:
    text = "[]"
    for number in range(history.ENTRIES + 5):
        text = history.extended(text, {"n": number})
    found = history.load(text)
    assert (len(found), found[0]["n"], found[-1]["n"]) == (history.ENTRIES, 5, history.ENTRIES + 4)


def test_a_header_has_the_latest_entries_that_fit() -> None:
    entries = [{"n": number, "text": "é" * 20} for number in range(100)]
    text = history.within(entries, 1000)
    assert len(text.encode()) <= 1000
    assert json.loads(text)[-1] == entries[-1]
    assert history.within([], 10) == "[]"
