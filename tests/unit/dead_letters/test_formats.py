from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumerkit.dead_letters.formats import Convention, MalformedRecord, Origin, Unrecognised, read
from consumerkit.dead_letters.formats import consumerkit as dead_letter_format
from consumerkit.dead_letters.formats.java_stack import place_in
from consumerkit.message import LATEST, Headers, Message
from consumerkit.outcome import Reason
from consumerkit.storage.dead_letters.letters import DeadMessage
from tests.unit.dead_letters.records import JAVA_STACK, connect, record, replaced, spring, without

OWN: Headers = (("message-id", b"pay-1"), ("raw", b"\xff\x00"), ("none", None))
NOW = datetime(2026, 11, 25, 2, 0, tzinfo=UTC)


def ours(**changes: object) -> Message:
    """The record that our own engine writes of a dead message."""
    message = Message("payments", 3, 17, b"alice", b"{}", OWN, 1_700_000_000_123, "payments-id")
    facts: dict[str, object] = {
        "message": message,
        "digest": b"d" * 16,
        "message_id": "pay-1",
        "reason": Reason.REJECTED,
        "error_type": "shop.Closed",
        "error": "the account is closed",
        "stack": "shop.py:3",
        "place": "shop.py:3 in close",
        "attempts": 6,
        "first_failed_at": NOW,
        **changes,
    }
    sent = dead_letter_format.written(DeadMessage(**facts), "dead", "credit", NOW)  # type: ignore[arg-type]
    return Message("dead", 2, 40, sent.key, sent.value, sent.headers, 1_700_000_009_000)


# -- our own


def test_our_own_record_gives_back_the_message_and_all_that_was_known_of_its_death() -> None:
    letter = read(ours())
    assert (letter.key, letter.value, letter.headers) == (b"alice", b"{}", OWN)
    assert (letter.origin, letter.timestamp) == (Origin("payments", 3, 17), 1_700_000_000_123)
    assert (letter.reason, letter.error_type, letter.error) == (Reason.REJECTED, "shop.Closed", "the account is closed")
    assert (letter.stack, letter.attempts, letter.first_failed_at) == ("shop.py:3", 6, NOW)
    assert (letter.topic_id, letter.place) == ("payments-id", "shop.py:3 in close")
    assert (letter.consumer, letter.whole) == ("credit", True)


@given(
    timestamp=st.integers(-(2**63), 2**63 - 1) | st.sampled_from((-1, 0, LATEST - 1, LATEST)),
    kind=st.text(max_size=1100),
    words=st.text(max_size=60),
    attempts=st.integers(0, 2**31 - 1),
    own=st.lists(st.tuples(st.sampled_from(("id", "", "consumerkit-dlq-reason", "\u202e")), st.none() | st.binary())),
    value=st.none() | st.binary(max_size=9),
    failed=st.none() | st.floats(0, 253_000_000_000).map(lambda at: datetime.fromtimestamp(at, UTC)),
)
def test_whatever_our_writer_writes_our_reader_reads(
    timestamp: int, kind: str, words: str, attempts: int, own: Any, value: bytes | None, failed: datetime | None
) -> None:
    message = Message("payments", 3, 17, b"alice", value, tuple(own), timestamp, "payments-id")
    facts: dict[str, Any] = {"error": words, "stack": words, "place": words, "message_id": words}
    written = ours(message=message, error_type=kind, attempts=attempts, first_failed_at=failed, **facts)
    letter = read(written)
    assert (letter.key, letter.value, letter.headers) == (b"alice", value, tuple(own))
    assert letter.timestamp == (timestamp if 0 <= timestamp < LATEST else -1)
    assert (letter.attempts, letter.consumer, letter.topic_id) == (attempts, "credit", "payments-id")


@pytest.mark.parametrize("timestamp", [LATEST, 2**63 - 1])
@pytest.mark.parametrize("headers", [connect("payments", 3, 17), without(spring(), "kafka_dlt-original-timestamp")])
def test_a_timestamp_of_the_record_itself_that_is_no_time_is_told(headers: Headers, timestamp: int) -> None:
    with pytest.raises(MalformedRecord, match="the record's own timestamp is not a time"):
        read(Message("dead", 2, 40, b"k", b"v", headers, timestamp))
    assert read(Message("dead", 2, 40, b"k", b"v", headers, LATEST - 1)).timestamp == LATEST - 1
    assert read(Message("dead", 2, 40, b"k", b"v", headers, -1)).timestamp == -1


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_of_ours_comes_back(reason: Reason) -> None:
    assert read(ours(reason=reason)).reason is reason


def test_our_own_record_of_an_oversized_message_is_known_not_to_hold_it() -> None:
    assert not read(ours(reason=Reason.OVERSIZED, keep_value=False)).whole


def test_a_record_of_ours_that_only_refers_to_its_message_is_known_not_to_hold_it() -> None:
    sent = ours()
    referring = Message("dead", 2, 40, b"alice", None, (*sent.headers, ("consumerkit-dlq-by-reference", b"true")))
    assert not read(referring).whole
    assert read(ours(message=referring)).whole


def test_a_tombstone_of_ours_with_its_headers_is_whole() -> None:
    message = Message("payments", 3, 17, None, None, OWN)
    assert read(ours(message=message)).whole


def test_what_another_handler_of_ours_wrote_before_stays_on_the_message() -> None:
    first = ours()
    second = ours(message=first, reason=Reason.EXHAUSTED)
    letter = read(second)
    assert letter.headers == first.headers
    assert (letter.reason, letter.origin) == (Reason.EXHAUSTED, Origin("dead", 2, 40))


@pytest.mark.parametrize(
    "name, value, why",
    [
        ("reason", b"bored", "none of undecodable"),
        ("reason", None, "has no value"),
        ("topic", b"no topic", "not a topic's name"),
        ("topic", b"", "empty"),
        ("topic", b"\xff", "not UTF-8"),
        ("partition", b"three", "not a whole number"),
        ("partition", b"-1", "not a place"),
        ("partition", b"2147483648", "not a place"),
        ("offset", b"", "not a whole number"),
        ("offset", "٣".encode(), "not a whole number"),
        ("offset", b"9" * 5_000, "not a whole number"),
        ("timestamp", b"-2", "not a time"),
        ("timestamp", b"soon", "not a whole number"),
        ("attempts", b"-1", "negative"),
        ("first-failed-at", b"yesterday", "ISO 8601"),
        ("first-failed-at", b"2026-11-25T02:00:00", "time zone"),
        ("error-type", b"", "empty"),
        ("consumer", b"", "empty"),
        ("size", b"much", "not a whole number"),
    ],
)
def test_a_malformed_header_of_ours_is_named_and_not_quoted(name: str, value: bytes | None, why: str) -> None:
    message = ours()
    odd = Message("dead", 2, 40, b"k", b"v", replaced(message.headers, f"consumerkit-dlq-{name}", value))
    with pytest.raises(MalformedRecord, match=f"'consumerkit-dlq-{name}'.*{why}"):
        read(odd)


@pytest.mark.parametrize(
    "name",
    ["reason", "topic", "partition", "offset", "timestamp", "attempts", "first-failed-at", "error-type", "consumer"],
)
def test_a_header_of_ours_that_is_missing_is_named(name: str) -> None:
    odd = record(*without(ours().headers, f"consumerkit-dlq-{name}"))
    with pytest.raises(MalformedRecord, match=f"'consumerkit-dlq-{name}' is missing"):
        read(odd)


def test_forged_attempts_of_ours_are_cut_to_what_a_column_holds() -> None:
    odd = record(*replaced(ours().headers, "consumerkit-dlq-attempts", b"9" * 19))
    assert read(odd).attempts == 2**31 - 1


# -- Java's stacks


@pytest.mark.parametrize(
    "stack, place",
    [
        ("", None),
        ("no stack at all", None),
        ("Boom\n\tat a.B.c(B.java:1)\nCaused by: Bang\n\tat d.E.f(E.java:2)\n\t... 3 more\n", "E.java:2 in d.E.f"),
        ("Boom\n\tat java.util.Map.of(Map.java:7)\n", "Map.java:7 in java.util.Map.of"),
        ("Boom\n\tat app//com.shop.Pay$1.<init>(Pay.java:3)\n", "Pay.java:3 in com.shop.Pay$1.<init>"),
        ("Boom\n\tat java.base/java.util.Map.of(Map.java:7)\n\tat x.Y.z(Native Method)\n", "Native Method in x.Y.z"),
        ("\tat " + "a" * 100_000 + "(", None),
    ],
)
def test_the_place_is_the_first_frame_of_the_innermost_cause_outside_of_libraries(
    stack: str, place: str | None
) -> None:
    assert place_in(stack) == place


# -- Spring's


def test_springs_record_gives_back_the_message_and_its_death() -> None:
    letter = read(record(*OWN, *spring()))
    assert (letter.key, letter.value, letter.headers) == (b"k", b"v", OWN)
    assert letter.origin == Origin("payments", 3, 5_000_000_000)
    assert letter.timestamp == 1_700_000_000_123
    assert letter.reason is Reason.EXHAUSTED
    assert letter.error_type == "java.lang.IllegalStateException"
    assert letter.error == "Listener failed; no such account"
    assert letter.stack == JAVA_STACK
    assert letter.place == "Payments.java:12 in com.shop.Payments.on"
    assert letter.consumer == "payments-service"
    assert letter.attempts == 0


def test_spring_without_cause_message_and_group() -> None:
    letter = read(record(*spring(kind="com.shop.Boom", cause=None, message=None, group=None)))
    assert (letter.error_type, letter.error, letter.consumer) == ("com.shop.Boom", "", "")


@pytest.mark.parametrize(
    "kind, cause",
    [
        ("org.springframework.kafka.support.serializer.DeserializationException", None),
        ("org.springframework.kafka.listener.ListenerExecutionFailedException", "x.MessageConversionException"),
        ("org.apache.kafka.common.errors.SerializationException", "java.io.IOException"),
    ],
)
def test_what_spring_could_not_deserialize_is_undecodable(kind: str, cause: str | None) -> None:
    assert read(record(*spring(kind=kind, cause=cause))).reason is Reason.UNDECODABLE


def test_a_key_that_spring_could_not_deserialize_is_undecodable() -> None:
    kind = b"org.springframework.kafka.support.serializer.DeserializationException"
    headers = without(
        spring(), "kafka_dlt-exception-fqcn", "kafka_dlt-exception-message", "kafka_dlt-exception-stacktrace"
    )
    key = (("kafka_dlt-key-exception-fqcn", kind), ("kafka_dlt-key-exception-message", b"failed to deserialize"))
    letter = read(record(*key, *headers))
    assert (letter.reason, letter.error_type, letter.error) == (
        Reason.UNDECODABLE,
        kind.decode(),
        "failed to deserialize",
    )


def test_springs_serialized_exceptions_are_left_out_unread() -> None:
    headers = (
        ("springDeserializerExceptionValue", b"\xac\xed\x00\x05"),
        ("springDeserializerExceptionKey", b"\xac\xed"),
    )
    assert read(record(*OWN, *headers, *spring())).headers == OWN


def test_springs_retry_topics_tell_the_first_origin_the_last_failure_and_the_attempts() -> None:
    retried = (
        ("retry_topic-original-timestamp", b"\x01\x8b"),
        ("retry_topic-attempts", b"\x00\x00\x00\x02"),
        ("retry_topic-backoff-timestamp", b"\x01\x8b"),
        ("retry_topic-attempts", b"\x00\x00\x00\x04"),
    )
    letter = read(record(*OWN, *spring(prefix="kafka_"), *retried))
    assert letter.headers == OWN
    assert letter.origin == Origin("payments", 3, 5_000_000_000)
    assert letter.attempts == 3
    assert letter.consumer == "payments-service"


def test_an_old_retry_topic_counts_in_one_byte() -> None:
    assert read(record(*spring(), ("retry_topic-attempts", b"\x03"))).attempts == 2


def test_springs_delivery_attempt_is_the_number_of_attempts() -> None:
    letter = read(record(("kafka_deliveryAttempt", b"\x00\x00\x00\x03"), *spring()))
    assert (letter.attempts, letter.headers) == (3, ())


def test_a_dead_letter_of_springs_dead_letter_topic_stood_where_it_stood_first_and_died_of_the_last() -> None:
    again = spring("payments-dlt", 0, 1, kind="com.shop.Again", cause=None, message="again")
    letter = read(record(*spring(kind="com.shop.First", cause=None), *again))
    assert letter.origin == Origin("payments", 3, 5_000_000_000)
    assert (letter.error_type, letter.error) == ("com.shop.Again", "again")
    assert letter.headers == ()


def test_of_both_kinds_of_springs_headers_the_first_tells_the_origin_and_the_last_the_failure() -> None:
    retry = spring("payments-dlt", 0, 1, prefix="kafka_", kind="com.shop.Again", cause=None)
    letter = read(record(*spring(kind="com.shop.First", cause=None), *retry))
    assert (letter.origin, letter.error_type) == (Origin("payments", 3, 5_000_000_000), "com.shop.Again")


def test_spring_without_any_origin_says_so() -> None:
    names = ("kafka_dlt-original-topic", "kafka_dlt-original-partition", "kafka_dlt-original-offset")
    assert read(record(*without(spring(), *names))).origin is None


def test_spring_without_a_timestamp_keeps_the_records() -> None:
    assert read(record(*without(spring(), "kafka_dlt-original-timestamp"))).timestamp == 1_700_000_000_999


@pytest.mark.parametrize("name", ["original-topic", "original-partition", "original-offset", "exception-fqcn"])
def test_a_header_of_springs_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(MalformedRecord, match="is missing"):
        read(record(*without(spring(), f"kafka_dlt-{name}")))


@pytest.mark.parametrize(
    "name, value, why",
    [
        ("original-topic", b"a b", "not a topic's name"),
        ("original-topic", None, "has no value"),
        ("original-partition", b"3", "1 bytes, not 4"),
        ("original-partition", b"\xff\xff\xff\xff", "not a place"),
        ("original-offset", b"\x00\x00\x00\x07", "4 bytes, not 8"),
        ("original-offset", b"\xff" * 8, "not a place"),
        ("original-timestamp", b"1700000000123", "13 bytes, not 8"),
        ("original-timestamp", b"\x80" + b"\x00" * 7, "not a time"),
        ("exception-fqcn", b"", "empty"),
        ("exception-fqcn", b"\xff", "not UTF-8"),
        ("exception-cause-fqcn", b"\xff", "not UTF-8"),
        ("original-consumer-group", b"\xff", "not UTF-8"),
    ],
)
def test_a_malformed_header_of_springs_is_named_and_not_quoted(name: str, value: bytes | None, why: str) -> None:
    with pytest.raises(MalformedRecord, match=f"'kafka_dlt-{name}'.*{why}"):
        read(record(*replaced(spring(), f"kafka_dlt-{name}", value)))


@pytest.mark.parametrize(
    "name, value",
    [
        ("retry_topic-attempts", b"12"),
        ("retry_topic-attempts", b"\xff\xff\xff\xff"),
        ("retry_topic-attempts", b""),
        ("kafka_deliveryAttempt", b"3"),
    ],
)
def test_malformed_attempts_of_springs_are_named(name: str, value: bytes) -> None:
    with pytest.raises(MalformedRecord, match=name):
        read(record(*spring(), (name, value)))


def test_text_of_springs_that_is_not_utf8_is_escaped() -> None:
    letter = read(record(*replaced(spring(), "kafka_dlt-exception-message", b"caf\xe9")))
    assert letter.error == "caf\\xe9"


# -- Connect's


def test_connects_record_gives_back_the_message_and_its_death() -> None:
    letter = read(record(*OWN, *connect()))
    assert (letter.key, letter.value, letter.headers) == (b"k", b"v", OWN)
    assert letter.origin == Origin("payments", 3, 5_000_000_000)
    assert letter.timestamp == 1_700_000_000_999
    assert (letter.reason, letter.consumer, letter.error) == (Reason.EXHAUSTED, "jdbc-sink", "no such table")
    assert letter.error_type == "org.apache.kafka.connect.errors.ConnectException"
    assert "x.Y.z" in letter.stack


@pytest.mark.parametrize("stage", ["KEY_CONVERTER", "VALUE_CONVERTER", "HEADER_CONVERTER"])
def test_what_a_converter_of_connect_refused_is_undecodable(stage: str) -> None:
    assert read(record(*connect(stage=stage))).reason is Reason.UNDECODABLE


def test_connect_writes_no_value_for_an_exception_without_a_message() -> None:
    assert read(record(*connect(message=None))).error == ""


def test_connect_without_an_exception_is_named_by_its_stage() -> None:
    names = ("exception.class.name", "exception.message", "exception.stacktrace")
    letter = read(record(*without(connect(), *(f"__connect.errors.{name}" for name in names))))
    assert (letter.error_type, letter.error) == ("Connect.TASK_PUT", "")


def test_a_dead_letter_of_another_connectors_stood_where_it_stood_first_and_died_of_the_last() -> None:
    letter = read(record(*connect(), *connect("dead", 0, 1, message=b"again")))
    assert (letter.origin, letter.error) == (Origin("payments", 3, 5_000_000_000), "again")


def test_connect_says_that_it_does_not_know_an_origin() -> None:
    names = ("__connect.errors.topic", "__connect.errors.partition", "__connect.errors.offset")
    assert read(record(*connect("", -1, -1))).origin is None
    assert read(record(*without(connect(), *names))).origin is None


@pytest.mark.parametrize("name", ["topic", "partition", "offset", "stage", "connector.name"])
def test_a_header_of_connects_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(MalformedRecord, match=f"'__connect.errors.{name}' is missing"):
        read(record(*without(connect(), f"__connect.errors.{name}")))


@pytest.mark.parametrize(
    "name, value, why",
    [
        ("topic", b"", "empty"),
        ("topic", b"a/b", "not a topic's name"),
        ("partition", b"-1", "not a place"),
        ("partition", b"\x00\x00\x00\x03", "not a whole number"),
        ("offset", b"1e3", "not a whole number"),
        ("offset", b"9223372036854775808", "not a place"),
        ("stage", b"", "empty"),
        ("connector.name", b"\xff", "not UTF-8"),
        ("exception.class.name", b"", "empty"),
    ],
)
def test_a_malformed_header_of_connects_is_named_and_not_quoted(name: str, value: bytes | None, why: str) -> None:
    with pytest.raises(MalformedRecord, match=f"'__connect.errors.{name}'.*{why}"):
        read(record(*replaced(connect(), f"__connect.errors.{name}", value)))


# -- which of them


def test_a_record_without_any_conventions_headers_is_not_guessed_at() -> None:
    with pytest.raises(Unrecognised, match="any known convention"):
        read(record(*OWN))


def test_a_record_with_headers_of_several_conventions_is_read_as_told_and_not_guessed_at() -> None:
    both = record(*spring(), *connect())
    with pytest.raises(MalformedRecord, match="several conventions \\(spring, connect\\)"):
        read(both)
    assert read(both, Convention.SPRING).headers == connect()
    assert read(both, Convention.CONNECT).headers == spring()


def test_a_record_of_another_convention_than_told_is_left() -> None:
    with pytest.raises(Unrecognised, match="convention connect"):
        read(record(*spring()), Convention.CONNECT)
