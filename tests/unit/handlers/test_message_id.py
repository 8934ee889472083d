"""Distinct IDs stay distinct, whatever bytes they hold; equal ones are equal, wherever they were read."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from consumerkit import ConfigurationError, Message, coordinates, event_field, event_fields, header
from consumerkit.handlers.message_id import (
    DIGEST_BYTES,
    SHOWN_CHARACTERS,
    WHOLE_VALUE,
    Identity,
    encode_field,
    possible_digests,
    read_path,
    shown,
    topic_scope,
)

PARTS = st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=3).map(tuple)
SCOPES = st.sampled_from([b"", b"a", b"b", b"x" * 64, b"x" * 65, b"x" * 249])
MEGABYTES = b"x" * 10_000_000


def digest(parts: tuple[bytes, ...], scope: bytes = b"") -> bytes:
    names = tuple(f"h{n}" for n in range(len(parts)))
    found = header(*names).find(Message("t", 0, 0, headers=tuple(zip(names, parts, strict=True))), None, scope=scope)
    assert found is not None
    assert found.parts == parts
    return found.digest


@given(PARTS, PARTS, SCOPES, SCOPES)
def test_distinct_parts_and_scopes_never_share_a_digest(
    one: tuple[bytes, ...], other: tuple[bytes, ...], scope: bytes, other_scope: bytes
) -> None:
    assert (digest(one, scope) == digest(other, other_scope)) == ((one, scope) == (other, other_scope))


@given(st.integers(0, 9), st.integers(0, 99))
def test_a_place_in_the_log_is_never_taken_for_an_id(partition: int, offset: int) -> None:
    message = Message("t", partition, offset, headers=(("id", f"t/{partition}/{offset}".encode()),))
    by_place, by_header = coordinates().find(message, None), header("id").find(message, None)
    assert by_place is not None
    assert by_header is not None
    assert by_place.parts == by_header.parts
    assert by_place.digest != by_header.digest


def test_a_composite_id_is_never_taken_for_a_single_one_that_looks_like_it() -> None:
    joined = b"".join(len(part).to_bytes(8, "big") + part for part in (b"a", b"b"))
    assert digest((b"a", b"b")) != digest((joined,))
    assert digest((b"ab", b"c")) != digest((b"a", b"bc"))


@pytest.mark.parametrize(
    "one, other",
    [
        (b"a", b"A"),
        (b"a", b"a "),
        (b"a", b"a\x00"),
        ("é".encode(), "e\u0301".encode()),
        (b"\xed\xa0\x80", b"\xed\xa0\x81"),
        (MEGABYTES, MEGABYTES[:-1] + b"y"),
        (b"1", b"01"),
    ],
)
def test_ids_that_databases_confuse_stay_distinct(one: bytes, other: bytes) -> None:
    assert digest((one,)) != digest((other,))
    assert len(digest((one,))) == DIGEST_BYTES


def test_the_digest_of_an_id_is_for_ever_the_same() -> None:
    assert digest((b"pay-1",)).hex() == "b57d374e7e8f11c104a156817ce990c0"
    assert digest((b"a", b"b"), b"topic").hex() == "67343f8d6e22046b65ff9f252b54ffc3"


@pytest.mark.parametrize("text", ["pay-1", "a\x00b", "\ud800", "ü", "'; DROP TABLE x"])
def test_the_same_id_in_a_header_and_a_field_is_the_same(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    message = Message("t", 0, 0, headers=(("id", raw),))
    identities: list[Identity] = [header("id"), event_field("id")]
    by_header, by_field = (identity.find(message, {"id": text}) for identity in identities)
    assert by_header == by_field
    assert by_header is not None
    assert (by_header.digest,) == header("id").digests_of(text) == possible_digests(text)


def test_an_id_given_by_hand_is_looked_for_as_every_source_of_so_many_parts_would_have_read_it() -> None:
    place = Message("orders", 3, 14, headers=(("id", b"T1/3/14"), ("a", b"x"), ("b", b"y")), topic_id="T1")
    mixed = header("id") | header("a", "b") | event_field("id") | coordinates()
    found = [source.find(place, {"id": "T1/3/14"}) for source in (header("id"), coordinates(), header("a", "b"))]
    by_header, by_place, by_both = [one.digest for one in found if one is not None]
    assert mixed.digests_of("T1/3/14") == possible_digests("T1/3/14") == (by_header, by_place)
    assert coordinates().digests_of("T1/3/14") == (by_place,)
    assert mixed.digests_of("x", b"y") == possible_digests("x", "y") == (by_both,)


def test_an_id_given_by_hand_needs_the_parts_that_a_source_reads() -> None:
    with pytest.raises(ValueError, match=r"header\('a', 'b'\) \| header\('id'\) has 1 or 2 part\(s\), and 3 are given"):
        (header("a", "b") | header("id")).digests_of("x", "y", "z")


def test_a_topics_scope_is_the_one_that_is_used_for_its_messages() -> None:
    message = Message("t", 0, 0, headers=(("id", b"1"),))
    found = header("id").find(message, None, scope=topic_scope("t"))
    assert found is not None
    assert (found.digest,) == header("id").digests_of("1", scope=topic_scope("t")) != header("id").digests_of("1")


def test_the_first_source_that_has_an_id_gives_it_and_the_others_are_fallbacks() -> None:
    identity = header("id") | event_field("id") | coordinates()
    found = [
        identity.find(Message("t", 0, 7, headers=(("id", b"a"),)), {"id": "b"}),
        identity.find(Message("t", 0, 7), {"id": "b"}),
        identity.find(Message("t", 0, 7), {}),
    ]
    assert [(str(each), each.fallback) for each in found if each] == [("a", False), ("b", True), ("t/0/7", True)]


@pytest.mark.parametrize("event", [None, {}, {"id": None}, {"id": ""}, {"id": b""}, [], 3, object(), "text"])
def test_a_missing_or_empty_id_is_none(event: object) -> None:
    assert event_field("id").find(Message("t", 0, 0), event) is None
    assert header("id").find(Message("t", 0, 0, headers=(("id", b""),)), event) is None


def test_a_composite_id_with_a_part_missing_is_none() -> None:
    assert header("a", "b").find(Message("t", 0, 0, headers=(("a", b"1"),)), None) is None


def test_the_scope_keeps_ids_apart_and_no_scope_is_one_too() -> None:
    assert len({digest((b"a",), scope) for scope in (b"", b"t1", b"t2", b"x" * 64 + b"1", b"x" * 64 + b"2")}) == 5


class Colour(Enum):
    RED = 1


class Size(StrEnum):
    BIG = "big"


class Order(BaseModel):
    id: str


@dataclass
class Line:
    order: Order
    number: int


class Trap:
    @property
    def id(self) -> str:
        raise RuntimeError


def test_a_path_goes_through_attributes_and_mappings() -> None:
    line = Line(Order(id="o"), 3)
    assert read_path(line, ("order", "id")) == "o"
    assert read_path({"line": line}, ("line", "number")) == 3
    assert read_path(line, ("order", "missing", "id")) is None
    assert read_path(Trap(), ("id",)) is None


@pytest.mark.parametrize(
    "value, encoded",
    [
        (None, None),
        ("ä", "ä".encode()),
        ("\ud800", b"\xed\xa0\x80"),
        (b"\xff", b"\xff"),
        (3, b"3"),
        (True, b"True"),
        (1.5, b"1.5"),
        (Decimal("1.50"), b"1.50"),
        (UUID(int=1), b"00000000-0000-0000-0000-000000000001"),
        (datetime(2024, 1, 2, tzinfo=UTC), b"2024-01-02 00:00:00+00:00"),
        (Colour.RED, b"1"),
        (Size.BIG, b"big"),
        (Order(id="o"), b'{"id":"o"}'),
        (Line(Order(id="o"), 3), b'{"order":{"id":"o"},"number":3}'),
        ([1, "a"], b'[1,"a"]'),
        pytest.param(10**5000, hex(10**5000).encode(), id="an integer that Python does not write in decimal"),
        pytest.param(-(10**5000), hex(-(10**5000)).encode(), id="and a negative one"),
    ],
)
def test_a_fields_text_is_the_same_each_time(value: object, encoded: bytes | None) -> None:
    assert encode_field(value) == encoded


def test_a_value_whose_text_would_hold_an_address_is_no_id() -> None:
    assert encode_field(object()) is None
    assert event_field("upper").find(Message("t", 0, 0), "text") is None


@given(st.one_of(st.binary(max_size=2000), st.text(max_size=900).map(lambda text: text.encode("utf-8", "replace"))))
def test_what_is_shown_of_an_id_is_printable_and_bounded(raw: bytes) -> None:
    text = shown(raw)
    assert text.isprintable()
    assert len(text) <= SHOWN_CHARACTERS
    text.encode("utf-8")


@pytest.mark.parametrize(
    "raw, text",
    [
        (b"pay-1", "pay-1"),
        (b"a\x00b\n", "a\\x00b\\n"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
        ("\u202egnp".encode(), "\\u202egnp"),
        ("😀".encode() * 200, "😀" * 200),
        ("😀".encode() * 200 + b"x", "😀" * 199 + "…"),
        (MEGABYTES, "x" * 199 + "…"),
    ],
)
def test_odd_ids_are_shown_escaped_and_cut(raw: bytes, text: str) -> None:
    assert shown(raw) == text


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: header(), "header(): give at least one name, none of them empty"),
        (lambda: header("a", ""), "header('a', ''): give at least one name, none of them empty"),
        (lambda: event_field(3), "event_field(3): give at least one name, none of them empty"),  # type: ignore[arg-type]
        (lambda: event_fields(), "event_fields(): give at least one name, none of them empty"),
        (lambda: event_fields("a", ""), "event_fields('a', ''): give at least one name, none of them empty"),
    ],
)
def test_a_source_without_a_name_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert str(caught.value) == text


def test_an_identity_reads_as_it_was_written() -> None:
    assert repr(header("a", "b") | event_field("c") | coordinates()) == (
        "header('a', 'b') | event_field('c') | coordinates()"
    )


def test_the_default_fingerprint_is_of_the_whole_value() -> None:
    one, other = Message("t", 0, 0, value=b"1"), Message("t", 0, 1, value=b"2")
    assert WHOLE_VALUE.of(one, None) == WHOLE_VALUE.of(Message("u", 9, 9, value=b"1"), None)
    assert WHOLE_VALUE.of(one, None) != WHOLE_VALUE.of(other, None)
    assert WHOLE_VALUE.of(Message("t", 0, 0), None) == WHOLE_VALUE.of(Message("t", 0, 1), None)


FIELD = st.one_of(st.none(), st.text(max_size=4), st.integers(-5, 5).map(str))


@given(st.tuples(FIELD, FIELD), st.tuples(FIELD, FIELD))
def test_a_fingerprint_of_fields_tells_exactly_those_fields_apart(
    one: tuple[str | None, str | None], other: tuple[str | None, str | None]
) -> None:
    fingerprint = event_fields("a", "b.c")

    def of(values: tuple[str | None, str | None], noise: int) -> bytes:
        event = {"a": values[0], "b": {"c": values[1]}, "noise": noise}
        return fingerprint.of(Message("t", 0, 0, value=str(noise).encode()), event)

    assert (of(one, 1) == of(other, 2)) == (one == other)
