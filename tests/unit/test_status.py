"""Where an ID is looked up: the handler's name, and the ledger's possible keys."""

from typing import Any, Literal
from uuid import UUID

import pytest

from consumerkit import ConfigurationError, Context, Handler, Identity, coordinates, event_field, header
from consumerkit.handlers.message_id import topic_scope
from consumerkit.status import address_of


class Credit(Handler[bytes]):
    name = "credit"
    topic = "payments"
    message_id: Identity = header("message-id") | event_field("account", "number")

    def __init__(self, **declared: Any) -> None:
        vars(self).update(declared)

    async def handle(self, event: bytes, context: Context) -> None: ...


class Regional(Handler[bytes]):
    name = "regional"
    topics = ("eu", "us")
    message_id = header("id")
    scope: Literal["consumer", "topic"] = "topic"

    async def handle(self, event: bytes, context: Context) -> None: ...


class Nameless(Handler[bytes]):
    topic = "payments"

    def __init__(self, tenant: str) -> None:
        self.name = f"credit-{tenant}"
        self.message_id = header("id")

    async def handle(self, event: bytes, context: Context) -> None: ...


def test_a_class_a_handler_and_a_name_lead_to_the_same_key() -> None:
    one = header("message-id").digests_of("pay-1")
    assert [address_of(asked, ("pay-1",), None) for asked in (Credit, Credit(), "credit")] == [
        ("credit", "pay-1", one)
    ] * 3
    assert address_of(Nameless("acme"), (b"pay-1",), None) == ("credit-acme", "pay-1", one)


def test_parts_of_an_id_are_read_as_a_field_is() -> None:
    number = UUID(int=7)
    address = address_of(Credit, ("alice", number), None)
    assert address.message_id == f"alice/{number}"
    assert address.digests == header("a", "b").digests_of("alice", str(number))
    assert address_of(Credit, (7,), None).digests == address_of(Credit, ("7",), None).digests


def test_a_place_in_the_log_is_one_part() -> None:
    by_place = coordinates().digests_of("T1/0/5")
    assert address_of(Credit(message_id=coordinates()), ("T1/0/5",), None).digests == by_place
    assert address_of("credit", ("T1/0/5",), None).digests[1:] == by_place


def test_ids_kept_apart_by_topic_are_looked_for_in_one() -> None:
    in_eu = header("id").digests_of("1", scope=topic_scope("eu"))
    assert address_of(Regional, ("1",), "eu").digests == in_eu == address_of("regional", ("1",), "eu").digests
    assert address_of(Regional, ("1",), "us").digests != in_eu
    only = Credit(message_id=header("id"), scope="topic", topic="eu")
    assert address_of(only, ("1",), None).digests == in_eu


@pytest.mark.parametrize(
    "asked, parts, topic, problem",
    [
        (Credit, (), None, "message ID: give at least one part, none of them empty"),
        (Credit, ("a", ""), None, "message ID: give at least one part, none of them empty"),
        (
            Credit,
            ("a", "b", "c"),
            None,
            (
                "Credit: a message ID of header('message-id') | event_field('account', 'number') has 1 or 2 part(s), "
                "and 3 are given"
            ),
        ),
        (Regional, ("1",), None, 'Regional has scope="topic": name the topic, one of eu, us'),
        (Regional, ("1",), "asia", "Regional does not read the topic 'asia'; it reads eu, us"),
        (
            Nameless,
            ("1",),
            None,
            "Nameless does not set name and message_id in the class; give an instance, or the name as text",
        ),
    ],
)
def test_what_cannot_be_looked_for_is_one_line(asked: Any, parts: Any, topic: str | None, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        address_of(asked, parts, topic)
    assert str(caught.value) == problem
