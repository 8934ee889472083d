"""From a record to an item: a failure here is final, and only an outage is waited for."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from consumerkit import Context, Events, Handler, Json, Unavailable, Undecodable, coordinates, event_field, header
from consumerkit.engine.transaction.delivery import Delivery, Handle
from consumerkit.engine.transaction.prepare import Preparer
from consumerkit.handlers.declaration import declare
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.storage.dead_letters.letters import DeadMessage

SECRET = b"4111-1111-1111-1111"


class Paid(BaseModel):
    id: str
    amount: int = 0

    @property
    def broken(self) -> str:
        raise LookupError(SECRET.decode())


class Pay(Handler[Paid]):
    name = "pay"
    topics = ("t", "u")
    message_id = header("id")

    async def handle(self, event: Paid, context: Context) -> None: ...


def preparer(**declared: Any) -> Preparer:
    handler = Pay()
    vars(handler).update(declared)
    return Preparer(declare(handler))


def message(value: bytes | None = b'{"id": "a", "amount": 1}', id: bytes | None = b"m-1", topic: str = "t") -> Message:
    return Message(topic, 0, 7, b"k", value, (("id", id),), topic_id=f"id-of-{topic}")


def prepared(made: Preparer, of: Message, attempt: int = 1) -> Delivery:
    decided = made.prepare(of, attempt)
    assert decided is not None
    assert decided.intent == Handle()
    return decided.delivery


def letter_of(made: Preparer, of: Message) -> DeadMessage:
    decided = made.prepare(of)
    assert decided is not None
    assert decided.delivery.digest is None
    assert decided.letter is not None
    assert SECRET.decode() not in decided.letter.error
    return decided.letter


def dead_of(made: Preparer, of: Message) -> tuple[Reason, str, str | None]:
    letter = letter_of(made, of)
    return letter.reason, letter.error, letter.message_id


def test_a_good_message_is_one_to_handle() -> None:
    delivery = prepared(preparer(), message(), attempt=3)
    assert (delivery.event, delivery.message_id, delivery.attempt) == (Paid(id="a", amount=1), "m-1", 3)
    assert not delivery.fallback
    assert delivery.digest is not None
    assert len(delivery.digest) == len(delivery.fingerprint) == 16


def test_a_message_is_decoded_anew_each_time() -> None:
    made, one = preparer(), message()
    assert prepared(made, one).event is not prepared(made, one).event


def test_what_is_too_large_is_not_even_decoded() -> None:
    large = message(SECRET * 10)
    made = preparer(size_limit=large.size - 1, codec=Failing(AssertionError))
    assert dead_of(made, large) == (
        Reason.OVERSIZED,
        f"{large.size} bytes are more than size_limit={large.size - 1}",
        None,
    )
    assert not letter_of(made, large).keep_value
    prepared(preparer(size_limit=message().size), message())


def test_very_many_empty_headers_are_too_large() -> None:
    many = Message("t", 0, 0, b"k", b"{}", (("", None),) * 100_000)
    reason, text, _ = dead_of(preparer(), many)
    assert (reason, text) == (Reason.OVERSIZED, "2400003 bytes are more than size_limit=1048576")


def test_what_cannot_be_decoded_is_dead_with_the_id_it_has() -> None:
    reason, _, hint = dead_of(preparer(), message(b'{"amount": "' + SECRET + b'"}'))
    assert (reason, hint) == (Reason.UNDECODABLE, "m-1")
    assert dead_of(preparer(), message(None, id=None))[0::2] == (Reason.UNDECODABLE, None)
    assert dead_of(preparer(message_id=event_field("id")), message(b"{"))[0::2] == (Reason.UNDECODABLE, None)


@pytest.mark.parametrize("id", [None, b""])
def test_a_message_without_an_id_is_dead(id: bytes | None) -> None:
    assert dead_of(preparer(), message(id=id)) == (
        Reason.UNIDENTIFIED,
        "no message ID: header('id') found none",
        None,
    )


def test_an_event_that_raises_while_its_id_is_read_is_dead() -> None:
    reason, error, _ = dead_of(preparer(message_id=event_field("broken")), message())
    assert reason is Reason.UNIDENTIFIED
    assert "event_field('broken')" in error


def test_a_fallback_is_marked() -> None:
    made = preparer(message_id=header("id") | coordinates())
    assert not prepared(made, message()).fallback
    assert prepared(made, message(id=None)).fallback


def test_ids_are_shared_by_topics_unless_scoped() -> None:
    shared, scoped = preparer(), preparer(scope="topic")
    assert prepared(shared, message()).digest == prepared(shared, message(topic="u")).digest
    assert prepared(scoped, message()).digest != prepared(scoped, message(topic="u")).digest


def test_another_payload_has_another_fingerprint() -> None:
    made = preparer()
    one, resend = prepared(made, message()), prepared(made, message())
    other = prepared(made, message(b'{"id": "b"}'))
    assert one.fingerprint == resend.fingerprint != other.fingerprint
    assert one.digest == other.digest


def test_an_unknown_type_is_skipped_or_dead_as_declared() -> None:
    def made(unknown: Any) -> Preparer:
        return preparer(events=Events(by=header("type"), types={"paid": Paid}, unknown=unknown))

    assert made("skip").prepare(message()) is None
    assert dead_of(made("dead-letter"), message())[0] is Reason.UNDECODABLE


class Failing(Json):
    def __init__(self, error: Callable[[], BaseException]) -> None:
        super().__init__()
        self.error = error

    def decoder(self, event_type: Any) -> Callable[[Message], Any]:
        def decode(_message: Message) -> Any:
            raise self.error()

        return decode


@pytest.mark.parametrize("error", [Unavailable("down"), ConnectionResetError(), TimeoutError(), OSError(5, "I/O")])
def test_an_outage_of_what_decoding_needs_is_nobodys_death(error: Exception) -> None:
    with pytest.raises(Unavailable):
        preparer(codec=Failing(lambda: error)).prepare(message())


@pytest.mark.parametrize("error", [Undecodable("bad"), ValueError(SECRET), ZeroDivisionError(), RecursionError()])
def test_any_other_error_of_a_codec_is_its_messages_death(error: Exception) -> None:
    assert dead_of(preparer(codec=Failing(lambda: error)), message())[0] is Reason.UNDECODABLE
