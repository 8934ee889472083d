"""JSON in and out."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from consumerkit import Json, Message, Undecodable


class Paid(BaseModel):
    id: str
    at: datetime


@dataclass
class Refunded:
    id: str


class Note(TypedDict):
    text: str


@pytest.mark.parametrize(
    "event_type, value, event",
    [
        (
            Paid,
            b'{"id": "a", "at": "2024-01-02T03:04:05Z"}',
            Paid(id="a", at=datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ),
        (Refunded, b'{"id": "a"}', Refunded("a")),
        (Note, b'{"text": "a"}', {"text": "a"}),
        (Refunded | Note, b'{"text": "a"}', {"text": "a"}),
        (bytes, b"\x00\xff", b"\x00\xff"),
        (int | None, b"null", None),
        (Any, b'{"a": [1, 2.5]}', {"a": [1, 2.5]}),
    ],
)
def test_a_value_becomes_an_event_of_the_declared_type(event_type: Any, value: bytes, event: object) -> None:
    assert Json().decoder(event_type)(Message("t", 0, 0, value=value)) == event


def test_an_error_names_at_most_three_places_and_no_value() -> None:
    decode = Json().decoder(dict[str, int])
    with pytest.raises(Undecodable) as caught:
        decode(Message("t", 0, 0, value=b'{"a": "secret", "b": "secret", "c": [], "d": {}}'))
    assert str(caught.value) == "*: int_parsing; *: int_parsing; *: int_type and 1 more"


def test_an_error_names_the_declared_field() -> None:
    with pytest.raises(Undecodable) as caught:
        Json().decoder(Paid)(Message("t", 0, 0, value=b'{"id": 3}'))
    assert str(caught.value) == "id: string_type; at: missing"


def test_an_error_names_no_key_that_only_the_payload_has() -> None:
    class Strict(BaseModel, extra="forbid"):
        parts: dict[int, list[Refunded]]

    with pytest.raises(Undecodable) as caught:
        Json().decoder(Strict)(Message("t", 0, 0, value=b'{"parts": {"4111": [{"id": 1}]}, "secret": 1}'))
    # In which order depends on the release of pydantic.
    assert set(str(caught.value).split("; ")) == {"parts.*.*.id: string_type", "*: extra_forbidden"}


@pytest.mark.parametrize(
    "value, encoded",
    [
        (Paid(id="a", at=datetime(2024, 1, 2, tzinfo=UTC)), b'{"id":"a","at":"2024-01-02T00:00:00Z"}'),
        (Refunded("a"), b'{"id":"a"}'),
        ({"a": 1}, b'{"a":1}'),
        ("text", b'"text"'),
        (b"\xff", b"\xff"),
        (None, b"null"),
    ],
)
def test_a_value_becomes_json_and_bytes_pass(value: object, encoded: bytes) -> None:
    assert Json().encode(value) == encoded


def test_what_cannot_be_encoded_is_a_type_error() -> None:
    circle: list[Any] = []
    circle.append(circle)
    for value in (object(), circle, "\ud800", {"a": {1, object()}}):
        with pytest.raises(TypeError, match=r"^cannot encode"):
            Json().encode(value)
