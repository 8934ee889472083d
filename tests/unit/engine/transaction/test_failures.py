"""The record of a failure: headers of a dead letter and texts of errors, without any payload."""

from datetime import UTC, datetime, timedelta

import psycopg.errors
import pytest
from sqlalchemy.exc import DBAPIError, StatementError

from consumerkit.dead_letters.formats import consumerkit as dead_letter_format
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.delivery import Delivery
from consumerkit.errors import Reject, Unavailable
from consumerkit.handlers.context import Publication
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.storage.dead_letters.letters import DeadMessage

SECRET = "4111-1111-1111-1111"
NOW = datetime(2024, 5, 1, 12, 30, 15, 123456, tzinfo=UTC)
MESSAGE = Message("t", 3, 7, b"key", b"\xff", (("a", b"1"), ("a", None), ("é", b"\x00")), 1000, "id-of-t")


def item(message: Message = MESSAGE) -> Delivery:
    return Delivery(message, object(), bytes(16), "pay-1", b"f" * 16)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def database_error(kind: type[psycopg.Error], message: str) -> DBAPIError:
    return DBAPIError("SELECT :secret", {"secret": SECRET}, kind(message))


def headers_of(dead: DeadMessage) -> dict[str, str]:
    sent = dead_letter_format.written(dead, "t.dlq", "credit", NOW)
    return {n: v.decode() for n, v in sent.headers if n.startswith("consumerkit-dlq-") and v is not None}


# The line in the log.


def test_the_words_of_a_reject_are_told_in_the_log_and_those_of_other_errors_are_not() -> None:
    rejected = failures.from_error(item(), Reason.REJECTED, raised(Reject("closed")), attempts=1, first_failed_at=None)
    exhausted = failures.from_error(
        item(), Reason.EXHAUSTED, raised(ValueError(SECRET)), attempts=1, first_failed_at=None
    )
    assert (failures.told(rejected), failures.told(exhausted)) == ("Reject: closed", "ValueError")


# The record on the dead-letter topic.


def test_a_dead_letter_is_the_message_with_ours_added_behind_its_headers() -> None:
    dead = failures.from_error(item(), Reason.EXHAUSTED, raised(ValueError("no")), attempts=3, first_failed_at=None)
    sent = dead_letter_format.written(dead, "t.dlq", "credit", NOW)
    assert (sent.topic, sent.key, sent.value) == ("t.dlq", b"key", b"\xff")
    assert sent.headers[:3] == MESSAGE.headers
    assert all(name.startswith("consumerkit-dlq-") for name, _ in sent.headers[3:])


def test_its_headers_tell_where_it_stood_and_what_went_wrong() -> None:
    failed = NOW - timedelta(seconds=5)
    error = raised(ValueError("no"))
    dead = failures.from_error(item(), Reason.EXHAUSTED, error, attempts=3, first_failed_at=failed)
    found = headers_of(dead)
    stack = found.pop("consumerkit-dlq-stack")
    assert stack.startswith("ValueError\n")
    assert "test_failures.py" in stack
    assert {name.removeprefix("consumerkit-dlq-"): value for name, value in found.items()} == {
        "reason": "exhausted",
        "error-type": "ValueError",
        "error-message": "no",
        "place": "tests/unit/engine/transaction/test_failures.py:29 in raised",
        "topic": "t",
        "topic-id": "id-of-t",
        "partition": "3",
        "offset": "7",
        "timestamp": "1000",
        "consumer": "credit",
        "message-id": "pay-1",
        "attempts": "3",
        "first-failed-at": "2024-05-01T12:30:10.123+00:00",
        "last-failed-at": "2024-05-01T12:30:15.123+00:00",
        "size": str(MESSAGE.size),
    }


def test_an_oversized_one_goes_by_reference() -> None:
    dead = DeadMessage(
        message=MESSAGE,
        digest=None,
        message_id=None,
        reason=Reason.OVERSIZED,
        error_type="Oversized",
        error="too large",
        keep_value=False,
    )
    sent = dead_letter_format.written(dead, "t.dlq", "credit", NOW)
    assert (sent.key, sent.value) == (None, None)
    assert all(name.startswith("consumerkit-dlq-") for name, _ in sent.headers)
    found = headers_of(dead)
    assert (found["consumerkit-dlq-offset"], found["consumerkit-dlq-size"]) == ("7", str(MESSAGE.size))
    assert found["consumerkit-dlq-message-id"] == ""


def test_headers_are_utf8_whatever_the_error_says() -> None:
    error = raised(ValueError("nul \x00 lone \udc80 é"))
    dead = failures.from_error(item(), Reason.EXHAUSTED, error, attempts=1, first_failed_at=None)
    assert headers_of(dead)["consumerkit-dlq-error-message"] == "nul \\x00 lone \\udc80 é"


def test_a_conflict_says_what_to_look_at() -> None:
    dead = failures.conflict(item())
    assert (dead.reason, dead.error_type, dead.attempts) == (Reason.CONFLICT, "Conflict", 0)
    assert "fingerprint" in dead.error


# Errors in words.


@pytest.mark.parametrize("length, kept", [(2000, 2000), (2001, 2000), (100_000, 2000)])
def test_long_texts_are_cut(length: int, kept: int) -> None:
    error = raised(ValueError("x" * length))
    dead = failures.from_error(item(), Reason.EXHAUSTED, error, attempts=1, first_failed_at=None)
    assert len(dead.error) == kept
    assert dead.error.endswith("…") == (length > kept)


def test_a_deep_stack_is_cut_at_its_outer_end() -> None:
    def deeper(levels: int) -> None:
        if levels:
            deeper(levels - 1)
        raise_here()

    def raise_here() -> None:
        raise KeyError(SECRET)

    with pytest.raises(KeyError) as caught:
        deeper(300)
    stack = failures.stack_of(caught.value)
    assert len(stack.encode()) <= failures.STACK_BYTES
    assert "raise_here" in stack
    assert SECRET not in stack


def test_a_stack_names_all_causes_and_no_values() -> None:
    error = raised(ValueError(SECRET))
    error.__cause__ = raised(KeyError(SECRET))
    stack = failures.stack_of(error)
    assert stack.startswith("ValueError\n")
    assert "caused by\nKeyError\n" in stack
    assert SECRET not in stack


def test_a_circle_of_causes_comes_to_an_end() -> None:
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one
    assert failures.stack_of(one).count("caused by") == 9


def test_a_database_error_is_kept_without_statement_parameters_and_detail() -> None:
    error = raised(database_error(psycopg.errors.UniqueViolation, f"duplicate key\nDETAIL: Key (card)=({SECRET})"))
    assert failures.error_text(error) == "23505: duplicate key"


@pytest.mark.parametrize(
    "error, told",
    [
        (Reject("account is closed"), "Reject: account is closed"),
        (Unavailable("registry is down"), "Unavailable: registry is down"),
        (database_error(psycopg.errors.UniqueViolation, 'violates "ux"'), 'DBAPIError: 23505: violates "ux"'),
        (
            database_error(psycopg.errors.InvalidTextRepresentation, f'invalid: "{SECRET}"'),
            "DBAPIError with SQLSTATE 22P02",
        ),
        (database_error(psycopg.errors.RaiseException, SECRET), "DBAPIError with SQLSTATE P0001"),
        (database_error(psycopg.errors.SyntaxError, f'in tsquery: "{SECRET}"'), "DBAPIError with SQLSTATE 42601"),
        (database_error(psycopg.DataError, f"NUL in {SECRET}"), "DBAPIError with SQLSTATE unknown"),
    ],
)
def test_a_log_is_told_what_may_be_told(error: Exception, told: str) -> None:
    what, _, place = failures.described(raised(error)).partition(" at ")
    assert what == told
    # The user's line is there for every error except a deliberate `Reject`.
    assert place.startswith("tests/unit/engine/transaction/test_failures.py:") or isinstance(
        error, Reject | Unavailable
    )


def test_a_log_is_told_where_any_other_error_was_raised_and_not_what_it_says() -> None:
    told = failures.described(raised(ValueError(f"card {SECRET}")))
    assert told.startswith("ValueError at ")
    assert "test_failures.py:" in told
    assert SECRET not in told
    assert failures.described(ValueError(SECRET)) == "ValueError"


def test_an_errors_class_is_named_with_its_module() -> None:
    assert failures.error_type(ValueError()) == "ValueError"
    assert failures.error_type(Reject("no")) == "consumerkit.errors.Reject"


# Publications.


def test_a_publication_has_the_same_id_whenever_its_message_is_handled() -> None:
    made = Publication("receipts", b"k", b"v", (("x", b"1"),), None)
    first = failures.published(made, "credit", bytes(16), 0)
    assert first == failures.published(made, "credit", bytes(16), 0)
    assert first.headers[0] == ("x", b"1")
    others = [
        failures.published(made, "credit", bytes(16), 1),
        failures.published(made, "debit", bytes(16), 0),
        failures.published(made, "credit", b"\x01" * 16, 0),
        failures.published(made, "credit", None, 0),
    ]
    ids = {one.headers[-1] for one in (first, *others)}
    assert len(ids) == 5
    assert all(name == "message-id" and value is not None and len(value) == 32 for name, value in ids)


def test_a_publication_with_an_id_keeps_it() -> None:
    made = Publication("receipts", None, None, (), "pay-1-receipt")
    assert failures.published(made, "credit", None, 0).headers == (("message-id", b"pay-1-receipt"),)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "error, cause, text",
    [
        (ValueError("no"), None, "no"),
        (ValueError("no"), KeyError("k"), "no; caused by KeyError: 'k'"),
        (ValueError("no"), OSError(), "no; caused by OSError"),
        (ValueError("no"), ConnectionError("postgresql://app:hunter2@db"), "no; caused by ConnectionError: postgresql://app:***@db"),
        (ValueError("password=hunter2"), None, "password=***"),
        (Unspeakable(), None, "(its text raised RuntimeError)"),
        (ValueError("no"), Unspeakable(), f"no; caused by {__name__}.Unspeakable: (its text raised RuntimeError)"),
        (StatementError("bad type", "INSERT", {"card": SECRET}, TypeError(SECRET)), None, "bad type"),
    ],
)  # fmt: skip
def test_an_error_is_kept_with_its_causes_and_without_secrets(
    error: Exception, cause: Exception | None, text: str
) -> None:
    error.__cause__ = cause
    dead = failures.from_error(item(), Reason.EXHAUSTED, raised(error), attempts=3, first_failed_at=None)
    parked = failures.parked(item(), raised(error), attempts=3, wait=1.0, first_failed_at=None)
    assert dead.error == parked.error == text


@pytest.mark.parametrize("suppressed, text", [(True, "no"), (False, "no; caused by KeyError: 'k'")])
def test_a_context_is_a_cause_unless_it_was_suppressed(suppressed: bool, text: str) -> None:
    error = ValueError("no")
    error.__context__ = KeyError("k")
    error.__suppress_context__ = suppressed
    assert failures.recorded_text(error) == text


def test_what_sqlalchemy_wraps_is_not_told_again_with_its_values() -> None:
    error = database_error(psycopg.errors.UniqueViolation, f"duplicate key\nDETAIL: Key (card)=({SECRET})")
    error.__cause__ = psycopg.errors.UniqueViolation(f"Key (card)=({SECRET})")
    own = ValueError("no")
    own.__cause__ = error
    assert failures.recorded_text(own) == "no; caused by sqlalchemy.exc.DBAPIError: 23505: duplicate key"
    assert SECRET not in failures.stack_of(own)


def test_a_secret_is_hidden_before_the_text_is_cut() -> None:
    card = "4111111111111111"
    text = failures.recorded_text(ValueError("x" * (failures.TEXT_CHARACTERS - 8) + " " + card))
    assert text.endswith("x ***")


def test_secrets_reach_neither_stack_nor_log() -> None:
    with pytest.raises(ValueError, match="no") as caught:
        raise ValueError("no", "password=hunter2")
    assert "hunter2" not in failures.stack_of(caught.value)
    assert failures.described(Reject("password=hunter2")) == "Reject: password=***"
