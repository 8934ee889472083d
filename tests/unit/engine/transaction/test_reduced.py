"""A record that a database refuses to store is reduced, at most twice, and never in place."""

from consumerkit.engine.transaction.delivery import Decided, Delivery, GiveUp, Handle, Intent, Park
from consumerkit.engine.transaction.reduced import UNSTORABLE, reduced
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.parking.parked import ParkedMessage

MESSAGE = Message("t", 0, 7, b"k", b"v\xff", ())
LETTER = DeadMessage(
    message=MESSAGE,
    digest=bytes(16),
    message_id="é",
    reason=Reason.EXHAUSTED,
    error_type="Érr",
    error="wörds",
    stack="at é",
    place="é.py:1",
)
ROW = ParkedMessage(
    message=MESSAGE,
    digest=bytes(16),
    message_id="é",
    fingerprint=b"",
    error_type="Érr",
    error="wörds",
    stack="at é",
)


def texts(intent: Intent) -> tuple[str | None, ...]:
    if isinstance(intent, GiveUp):
        letter = intent.letter
        return letter.message_id, letter.error_type, letter.error, letter.stack, letter.place
    assert isinstance(intent, Park)
    return intent.row.message_id, intent.row.error_type, intent.row.error, intent.row.stack


def test_a_letter_loses_what_is_not_ascii_and_then_its_words() -> None:
    given = Decided(Delivery(MESSAGE, message_id="é"), GiveUp(LETTER, token=True))
    first = reduced(given)
    assert first is not None
    assert texts(first.intent) == ("\\xe9", "\\xc9rr", "w\\xf6rds", "at \\xe9", "\\xe9.py:1")
    assert first.delivery.message_id == "\\xe9"
    second = reduced(first)
    assert second is not None
    assert texts(second.intent) == ("\\xe9", "\\xc9rr", UNSTORABLE, "", None)
    assert second.intent == GiveUp(second.letter or LETTER, token=True)
    assert second.message is MESSAGE
    assert reduced(second) is None
    assert texts(given.intent) == ("é", "Érr", "wörds", "at é", "é.py:1")


def test_a_parked_message_is_reduced_likewise() -> None:
    first = reduced(Decided(Delivery(MESSAGE, message_id="é"), Park(ROW)))
    assert first is not None
    assert texts(first.intent) == ("\\xe9", "\\xc9rr", "w\\xf6rds", "at \\xe9")
    second = reduced(first)
    assert second is not None
    assert texts(second.intent) == ("\\xe9", "\\xc9rr", UNSTORABLE, "")


def test_the_id_of_a_message_to_handle_is_reduced_for_what_its_transaction_writes() -> None:
    first = reduced(Decided(Delivery(MESSAGE, message_id="é")))
    assert first is not None
    assert first.delivery.message_id == "\\xe9"
    assert first.intent == Handle()
