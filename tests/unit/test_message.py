"""A record as the broker delivered it."""

import pytest

from consumerkit import Message, TopicPartition
from consumerkit.message import is_topic_name


def test_the_last_of_several_headers_of_a_name_counts() -> None:
    message = Message("t", 0, 0, headers=(("id", b"first"), ("other", b"x"), ("id", b"last")))
    assert message.header("id") == b"last"
    assert message.header("ID") is None
    assert message.header("missing") is None


def test_a_last_header_without_a_value_hides_an_earlier_one() -> None:
    assert Message("t", 0, 0, headers=(("id", b"first"), ("id", None))).header("id") is None


def test_the_size_counts_key_value_and_headers() -> None:
    assert Message("t", 0, 0).size == 0
    assert Message("t", 0, 0, key=b"12", value=b"345", headers=(("ab", b"c"), ("d", None))).size == 9


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
