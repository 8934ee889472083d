"""A handler's publications are kept in order until its transaction ends."""

from functools import partial
from typing import Any

import pytest
from sqlalchemy.orm import Session

from consumerkit import BatchContext, Context, Json, Message, outbox
from consumerkit.handlers.context import Publication, Publisher, encoded_headers


def made() -> tuple[Publisher, Context[Any], BatchContext[Any]]:
    publisher = Publisher(Json().encode)
    session = object()
    return publisher, Context(session, Message("t", 0, 0), "pay-1", 2, publisher), BatchContext(session, publisher)


def test_a_context_holds_the_messages_surroundings() -> None:
    _, context, batch_context = made()
    assert (context.message_id, context.attempt, context.message.topic) == ("pay-1", 2, "t")
    assert context.session is batch_context.session


def test_text_is_sent_as_utf8_and_values_through_the_codec() -> None:
    publisher, context, batch_context = made()
    context.publish("receipts", key="ä", value={"a": 1}, id="r-1", headers={"kind": "ü", "raw": b"\xff"})
    batch_context.publish("receipts", key=b"\xff", value=b"\xff")
    assert publisher.publications == [
        Publication("receipts", "ä".encode(), b'{"a":1}', (("kind", "ü".encode()), ("raw", b"\xff")), "r-1"),
        Publication("receipts", b"\xff", b"\xff", (), None),
    ]


def test_none_is_a_tombstone_and_not_a_json_null() -> None:
    publisher, context, _ = made()
    context.publish("receipts", key="a")
    assert publisher.publications == [Publication("receipts", b"a", None, (), None)]


def test_a_value_that_cannot_be_encoded_publishes_nothing() -> None:
    publisher, context, _ = made()
    with pytest.raises(TypeError, match="cannot encode object as JSON"):
        context.publish("receipts", value=object())
    assert publisher.publications == []


@pytest.mark.parametrize("topic", ["", "a b", "..", "x" * 250])
def test_a_topic_that_kafka_would_refuse_is_refused_while_the_handler_runs(topic: str) -> None:
    publisher, context, _ = made()
    with pytest.raises(ValueError, match="is not the name of a topic"):
        context.publish(topic, value=1)
    assert publisher.publications == []


@pytest.mark.parametrize("declared", [("dev.receipts",), ()])
def test_a_topic_that_the_handler_does_not_declare_is_refused(declared: tuple[str, ...]) -> None:
    publisher = Publisher(Json().encode, "dev.", declared)
    told = r"^publish: 'reciepts' is not in the handler's publishes; add it there, or set none at all$"
    with pytest.raises(ValueError, match=told):
        publisher.publish("reciepts", value=1)
    if declared:
        publisher.publish("receipts", value=1)
    assert [one.topic for one in publisher.publications] == list(declared)


def test_no_headers_are_none() -> None:
    assert encoded_headers(None) == encoded_headers({}) == ()


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"key": 5}, "a key is text or bytes, not int; give key=str"),
        ({"id": 5}, "a message ID is text, not int; give id=str"),
        ({"headers": {"n": 5}}, "headers are text with text or bytes, not str: int"),
        ({"headers": {5: "n"}}, "headers are text with text or bytes, not int: str"),
    ],
)
def test_what_no_record_can_hold_is_refused_at_the_call(wrong: dict[str, Any], said: str) -> None:
    publisher, context, batch_context = made()
    for publish in (context.publish, batch_context.publish, partial(outbox.publish, Session())):
        with pytest.raises(TypeError, match=said):
            publish("receipts", **wrong)
    with pytest.raises(ValueError, match="'a b' is not the name of a topic"):
        outbox.publish(Session(), "a b")
    assert publisher.publications == []
