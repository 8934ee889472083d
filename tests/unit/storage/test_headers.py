"""Record headers as text: whatever bytes come, they come back."""

import json

from hypothesis import given
from hypothesis import strategies as st

from consumerkit.storage.headers import dump, load

# Names that are not UTF-8 arrive with their bytes escaped, as lone surrogates.
NAMES = st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary() | st.text().map(str.encode))).map(tuple)


@given(HEADERS)
def test_all_headers_come_back_in_order(headers: tuple[tuple[str, bytes | None], ...]) -> None:
    assert load(dump(headers)) == headers


@given(HEADERS)
def test_the_text_is_one_that_every_column_takes(headers: tuple[tuple[str, bytes | None], ...]) -> None:
    text = dump(headers)
    assert text.isascii()
    assert "\x00" not in text
    assert "\\u0000" not in json.dumps([value for _, value, *_ in json.loads(text)])


def test_plain_values_stay_readable() -> None:
    headers = (("id", b"pay-1"), ("id", b""), ("none", None), ("é", "☃".encode()), ("raw", b"\xff"), ("nul", b"a\x00"))
    assert json.loads(dump(headers)) == [
        ["id", "pay-1"],
        ["id", ""],
        ["none", None],
        ["é", "☃"],
        ["raw", "/w==", "base64"],
        ["nul", "YQA=", "base64"],
    ]


def test_no_headers_are_an_empty_list() -> None:
    assert dump(()) == "[]"
    assert load("[]") == ()
