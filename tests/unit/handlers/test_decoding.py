"""Whatever bytes arrive, decoding ends in an event, a skip, `Undecodable` or `Unavailable`, and never shows them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from consumerkit import Events, Json, Message, Unavailable, Undecodable, event_field, header
from consumerkit.handlers.decoding import SKIP, decoder_of, decoder_of_several

SECRET = "4111-1111-1111-1111"
DEEP = b"[" * 100_000 + b"]" * 100_000


class Paid(BaseModel):
    id: str
    amount: int


@dataclass
class Refunded:
    id: str


def message(value: bytes | None, **headers: bytes) -> Message:
    return Message("payments", 0, 7, value=value, headers=tuple(headers.items()))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"not json",
        b"\xff\xfe",
        b"null",
        b'{"id": "a"}',
        b'{"id": "a", "amount": "4111-1111-1111-1111"}',
        b'{"id": "a", "amount": 1, "x": "\\ud800"}',
        b'{"id": "a", "amount": 1' + b"0" * 10_000 + b"}",
        b'{"4111-1111-1111-1111": "a"}',
        DEEP,
        b'{"id":' * 100_000,
        b'{"id": "a", "amount": ' + DEEP + b"}",
        b"\x00" * 1000,
    ],
)
@pytest.mark.parametrize("event_type", [Paid, Paid | list[Refunded], list[Paid], dict[str, Paid]])
def test_a_value_that_does_not_fit_is_undecodable_and_not_shown(value: bytes, event_type: Any) -> None:
    with pytest.raises(Undecodable) as caught:
        decoder_of(Json(), event_type)(message(value))
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.__cause__ is None


@given(st.binary())
def test_any_bytes_end_as_an_event_or_undecodable(value: bytes) -> None:
    for event_type in (Paid, Any, dict[str, int]):
        try:
            decoder_of(Json(), event_type)(message(value))
        except Undecodable as error:
            assert error.__suppress_context__  # noqa: PT017


def test_a_tombstone_is_none_where_the_type_admits_it_and_the_codec_is_not_asked() -> None:
    class Unasked(Json):
        def decoder(self, event_type: Any) -> Callable[[Message], Any]:
            def decode(message: Message) -> Any:
                raise AssertionError(message)

            return decode

    assert decoder_of(Unasked(), Paid | None)(message(None)) is None
    with pytest.raises(Undecodable, match="tombstone"):
        decoder_of(Unasked(), Paid)(message(None))


def test_bytes_are_left_undecoded() -> None:
    assert decoder_of(Json(), bytes)(message(b"\xff")) == b"\xff"
    with pytest.raises(Undecodable, match="tombstone"):
        decoder_of(Json(), bytes)(message(None))


@pytest.mark.parametrize("error", [KeyError(SECRET), TypeError(SECRET), ZeroDivisionError(), RecursionError(SECRET)])
def test_an_error_in_a_codec_or_a_validator_is_undecodable_without_its_text(error: Exception) -> None:
    class Strange(BaseModel):
        id: str

        @field_validator("id")
        @classmethod
        def check(cls, value: str) -> str:
            raise error

    class Careless(Json):
        def decoder(self, event_type: Any) -> Callable[[Message], Any]:
            return lambda message: Strange.check(str(message))

    for decode in (decoder_of(Json(), Strange), decoder_of(Careless(), bytes)):
        with pytest.raises(Undecodable, match=type(error).__name__) as caught:
            decode(message(b'{"id": "a"}'))
        assert SECRET not in str(caught.value)


def test_an_outage_of_what_a_codec_needs_is_not_the_messages_fault() -> None:
    class Registry(Json):
        def __init__(self, error: Exception) -> None:
            self.error = error

        def decoder(self, event_type: Any) -> Callable[[Message], Any]:
            def decode(message: Message) -> Any:
                raise self.error

            return decode

    for error in (Unavailable("the registry is down"), ConnectionRefusedError(), TimeoutError()):
        with pytest.raises(Unavailable):
            decoder_of(Registry(error), Paid)(message(b"{}"))


def several(**options: Any) -> Callable[[Message], Any]:
    types = {"paid": Paid, "refundé": Refunded | None}
    return decoder_of_several(Json(), Events(**{"by": header("type"), "types": types, **options}))


def test_the_type_is_chosen_by_a_header_compared_as_utf8() -> None:
    decode = several()
    assert decode(message(b'{"id": "a", "amount": 1}', type=b"paid")) == Paid(id="a", amount=1)
    assert decode(message(b'{"id": "a"}', type="refundé".encode())) == Refunded("a")
    assert decode(message(None, type="refundé".encode())) is None
    with pytest.raises(Undecodable, match="tombstone"):
        decode(message(None, type=b"paid"))


def test_the_type_is_chosen_by_a_field_even_a_nested_one() -> None:
    decode = several(by=header("type") | event_field("meta.type"))
    assert decode(message(b'{"id": "a", "amount": 1, "meta": {"type": "paid"}}')) == Paid(id="a", amount=1)


@pytest.mark.parametrize("type_name", [b"unknown", b"PAID", b"paid ", b"\xff", b"", None])
def test_an_unknown_or_missing_type_is_skipped_or_dead_lettered_as_declared(type_name: bytes | None) -> None:
    record = message(b"{", **({} if type_name is None else {"type": type_name}))
    assert several()(record) is SKIP
    with pytest.raises(Undecodable, match="type name at header"):
        several(unknown="dead-letter")(record)


@pytest.mark.parametrize("value", [b"", b"{", b"\xff", DEEP, b'{"type": "\\ud800"}'])
def test_a_value_in_which_no_field_can_be_read_is_undecodable_even_where_unknown_types_are_skipped(
    value: bytes,
) -> None:
    with pytest.raises(Undecodable, match=r"^the value is not JSON, so it has no field that names its type$"):
        several(by=event_field("type"))(message(value))


@pytest.mark.parametrize("value", [None, b"[]", b"3", b"null", b"{}", b'{"type": null}', b'{"type": {"a": 1}}'])
def test_a_value_without_the_field_is_of_an_unknown_type(value: bytes | None) -> None:
    assert several(by=event_field("type"))(message(value)) is SKIP
