"""The meaning of a refusal in either client's words, and the way out for a person."""

import pytest

from consumerkit.relay.refusals import Cause, cause_of, way_out
from consumerkit.transports.base import SendFailure


@pytest.mark.parametrize(
    "code, cause",
    [
        ("UNKNOWN_TOPIC_OR_PART", Cause.MISSING),
        ("_UNKNOWN_TOPIC", Cause.MISSING),
        ("UNKNOWN_TOPIC_OR_PARTITION", Cause.MISSING),
        ("TOPIC_AUTHORIZATION_FAILED", Cause.FORBIDDEN),
        ("MSG_SIZE_TOO_LARGE", Cause.TOO_LARGE),
        ("_MSG_SIZE_TOO_LARGE", Cause.TOO_LARGE),
        ("MESSAGE_SIZE_TOO_LARGE", Cause.TOO_LARGE),
        ("RECORD_LIST_TOO_LARGE", Cause.TOO_LARGE),
        ("INVALID_RECORD", Cause.UNFIT),
        ("UnicodeEncodeError", Cause.UNFIT),
    ],
)
def test_what_is_refused_for_good(code: str, cause: Cause) -> None:
    assert cause_of(SendFailure(code, "no", permanent=True)) is cause


@pytest.mark.parametrize("code", ["_MSG_TIMED_OUT", "_TRANSPORT", "NOT_ENOUGH_REPLICAS", "TimeoutError", "UNREACHABLE"])
def test_what_may_go_another_time(code: str) -> None:
    assert cause_of(SendFailure(code, "not now", permanent=False)) is Cause.UNREACHABLE


def test_only_a_records_fault_leaves_its_topic_alone() -> None:
    assert {cause for cause in Cause if cause.of_record} == {Cause.TOO_LARGE, Cause.UNFIT}


@pytest.mark.parametrize(
    "cause, told",
    [
        (Cause.MISSING, "consumerkit topics create"),
        (Cause.FORBIDDEN, "allow principal User:shop the operation WRITE on topic 'a.dlq'"),
        (Cause.TOO_LARGE, "raise `max.message.bytes` of topic 'a.dlq'"),
        (Cause.UNFIT, "`consumerkit outbox discard 7`"),
        (Cause.UNREACHABLE, "min.insync.replicas"),
    ],
)
def test_each_cause_has_a_way_out(cause: Cause, told: str) -> None:
    assert told in way_out(cause, "a.dlq", 7, principal="User:shop")


def test_without_a_known_principal_it_is_the_workers() -> None:
    assert "allow the worker's principal the operation WRITE" in way_out(Cause.FORBIDDEN, "a", 1)
