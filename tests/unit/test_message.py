"""A record as the broker delivered it."""

import pytest

from consumerkit import Message, TopicPartition
from consumerkit.message import HEADER_BYTES, is_topic_name
from consumerkit.storage.headers import dump, load


def test_the_last_of_several_headers_of_a_name_counts() -> None:
    message = Message("t", 0, 0, headers=(("id", b"first"), ("other", b"x"), ("id", b"last")))
    assert message.header("id") == b"last"
    assert message.header("ID") is None
    assert message.header("missing") is None


def test_a_last_header_without_a_value_hides_an_earlier_one() -> None:
    assert Message("t", 0, 0, headers=(("id", b"first"), ("id", None))).header("id") is None


def test_the_size_counts_key_value_and_headers() -> None:
    assert Message("t", 0, 0).size == 0
    assert Message("t", 0, 0, key=b"12", value=b"345", headers=(("ab", b"c"), ("d", None))).size == 9 + 2 * HEADER_BYTES


# Names and values at their worst: empty, of many bytes for a character, and of what JSON escapes.
@pytest.mark.parametrize(
    "header",
    [
        ("", None),
        ("", b""),
        ("é" * 40, b"x"),
        ("\x01" * 40, b""),
        ("n", b"\x01" * 400),
        ("n", b"\xff" * 400),
        ("n", "☃".encode() * 400),
        ("n", b'"' * 400),
        ("\udcff" * 9, b"\x00"),
    ],
    ids=repr,
)
def test_the_size_bounds_what_is_sent_and_what_is_stored(header: tuple[str, bytes | None]) -> None:
    headers = (header,) * 1_000
    message = Message("t", 0, 0, headers=headers)
    name, value = header
    sent = 1_000 * (2 + len(name.encode("utf-8", "surrogatepass")) + len(value or b""))
    assert message.size >= sent
    assert len(dump(headers)) <= message.size * 4 / 3
    assert load(dump(headers)) == headers


def test_the_representation_names_the_position_and_no_payload() -> None:
    message = Message("payments", 3, 14, key=b"secret", value=b"secret", headers=(("secret", b"secret"),))
    assert repr(message) == str(message) == "Message(payments[3]@14)"
    assert str(TopicPartition("payments", 3)) == "payments[3]"


def test_a_topic_id_unknown_to_the_broker_is_the_topics_name() -> None:
    assert Message("payments", 0, 0).topic_id == "payments"
    assert Message("payments", 0, 0, topic_id="0Xz").topic_id == "0Xz"


@pytest.mark.parametrize("name", ["a", "payments.captured", "A-b_c.9", "x" * 249, "..."])
def test_names_that_kafka_takes_for_topics(name: str) -> None:
    assert is_topic_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "ä", "a\n", "x" * 250, None, 3, b"a"])
def test_names_that_kafka_does_not_take_for_topics(name: object) -> None:
    assert not is_topic_name(name)
