"""A retry ends: by attempts, by deadline, or because the error is not worth another attempt."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from consumerkit import (
    BatchContext,
    BatchHandler,
    ConfigurationError,
    Received,
    Reject,
    Retry,
    exponential,
    fixed,
    header,
)
from consumerkit.errors import Unsatisfied
from consumerkit.handlers.declaration import declare
from consumerkit.policies.retry import Wait


def test_attempts_count_every_invocation() -> None:
    retry = Retry(attempts=3, wait=fixed(1))
    waits = [retry.next_wait(ValueError(), attempt=n, elapsed=0) for n in (1, 2, 3, 4)]
    assert waits == [1, 1, None, None]


def test_one_attempt_is_no_retry() -> None:
    assert Retry(attempts=1).next_wait(ValueError(), attempt=1, elapsed=0) is None


def test_no_attempt_begins_after_the_deadline() -> None:
    retry = Retry(deadline=10, wait=fixed(4))
    waits = [retry.next_wait(ValueError(), attempt=n, elapsed=elapsed) for n, elapsed in ((1, 0), (2, 6), (3, 6.1))]
    assert waits == [4, 4, None]


def test_whichever_comes_first_of_attempts_and_deadline_ends_it() -> None:
    retry = Retry(attempts=5, deadline=10, wait=fixed(4))
    assert retry.next_wait(ValueError(), attempt=2, elapsed=7) is None
    assert retry.next_wait(ValueError(), attempt=5, elapsed=0) is None


def test_an_error_outside_on_gets_no_attempt() -> None:
    retry = Retry(attempts=9, on=(TimeoutError, KeyError), wait=fixed(0))
    assert retry.next_wait(KeyError(), attempt=1, elapsed=0) == 0
    assert retry.next_wait(ValueError(), attempt=1, elapsed=0) is None


def test_reject_never_gets_another_attempt() -> None:
    assert Retry(attempts=9).next_wait(Reject("closed"), attempt=1, elapsed=0) is None
    assert Retry(attempts=9, on=(Reject,)).next_wait(Reject("closed"), attempt=1, elapsed=0) is None


def bool_of(value: object) -> bool:
    return bool(value)


async def _coroutine(error: Exception) -> bool:
    return True


class RateLimited(Exception):
    def __init__(self, seconds: object = None) -> None:
        self.seconds = seconds


class Slow(TimeoutError): ...


def asked_seconds(error: Any) -> object:
    return error.seconds


ON = "give a tuple of exception classes, a plain function, or a mapping from class to policy"


def _waits(retry: Retry, *errors: Exception) -> list[float | None]:
    return [retry.next_wait(error, attempt=number, elapsed=0) for number, error in enumerate(errors, 1)]


def test_a_predicate_decides_which_errors_are_worth_another_attempt() -> None:
    retry = Retry(attempts=9, wait=fixed(1), on=lambda error: error.args == ("again",))
    assert _waits(retry, ValueError("again"), ValueError("no")) == [1, None]


def test_a_predicate_that_raises_neither_stops_the_lane_nor_dead_letters_the_message() -> None:
    retry = Retry(attempts=2, wait=fixed(1), on=lambda error: error.status >= 500)
    assert _waits(retry, ValueError(), ValueError()) == [1, None]


def test_the_most_specific_class_of_an_error_decides() -> None:
    retry = Retry(attempts=9, on={OSError: fixed(1), TimeoutError: fixed(2), Exception: fixed(3), ValueError: None})
    assert _waits(retry, Slow(), ConnectionError(), KeyError(), ValueError()) == [2, 1, 3, None]


def test_the_order_of_a_mapping_does_not_matter() -> None:
    assert _waits(Retry(attempts=9, on={Slow: None, Exception: fixed(1)}), Slow()) == [None]
    assert _waits(Retry(attempts=9, on={Exception: fixed(1), Slow: None}), Slow()) == [None]


def test_an_error_that_a_mapping_does_not_name_gets_no_attempt() -> None:
    assert _waits(Retry(attempts=9, on={OSError: fixed(1)}), KeyError()) == [None]


def test_a_wait_of_a_mapping_keeps_the_limits() -> None:
    retry = Retry(attempts=2, deadline=10, on={OSError: fixed(4)})
    assert _waits(retry, OSError(), OSError()) == [4, None]
    assert retry.next_wait(OSError(), attempt=1, elapsed=7) is None


def test_a_retry_of_a_mapping_stands_for_itself() -> None:
    retry = Retry(attempts=2, wait=fixed(1), on={OSError: Retry(attempts=4, wait=fixed(9)), Exception: fixed(1)})
    assert _waits(retry, OSError(), OSError(), OSError(), OSError()) == [9, 9, 9, None]


def test_a_retry_of_a_mapping_can_choose_among_the_errors_of_its_class() -> None:
    retry = Retry(on={OSError: Retry(attempts=9, wait=fixed(1), on=lambda error: error.errno == 11)})
    assert _waits(retry, OSError(11, "again"), OSError(13, "denied")) == [1, None]


def test_attempts_are_counted_over_all_errors() -> None:
    retry = Retry(on={OSError: Retry(attempts=3, wait=fixed(1)), KeyError: Retry(attempts=9, wait=fixed(2))})
    assert _waits(retry, KeyError(), KeyError(), OSError()) == [2, 2, None]


def test_reject_meets_no_mapping() -> None:
    assert _waits(Retry(attempts=9, on={Exception: fixed(1)}), Reject("closed")) == [None]


def test_a_mapping_is_frozen() -> None:
    given: dict[type[Exception], Wait] = {OSError: fixed(1)}
    retry = Retry(attempts=3, on=given)
    given[OSError] = fixed(9)
    assert _waits(retry, OSError()) == [1]
    with pytest.raises(TypeError):
        retry.on[OSError] = fixed(9)  # type: ignore[index]


def test_policies_are_values() -> None:
    one, same, other = (
        Retry(attempts=3, on={OSError: fixed(seconds), KeyError: Retry(deadline=9)}, retry_after="seconds")
        for seconds in (1, 1, 2)
    )
    assert one == same != other
    assert hash(one) == hash(same)
    assert pickle.loads(pickle.dumps(one)) == one
    assert pickle.loads(pickle.dumps(one)).next_wait(OSError(), attempt=1, elapsed=0) == 1
    assert replace(one, attempts=4).on == one.on


@pytest.mark.parametrize(
    "retry, text",
    [
        (Retry(attempts=3), "Retry(attempts=3)"),
        (Retry(deadline=60, wait=fixed(5), on=(OSError,)), "Retry(deadline=60, wait=fixed(5), on=(OSError,))"),
        (Retry(attempts=3, on_result=bool_of), "Retry(attempts=3, on_result=bool_of)"),
        (
            Retry(in_place=3, on={OSError: Retry(attempts=3), KeyError: None}),
            "Retry(on={OSError: Retry(attempts=3), KeyError: None}, in_place=3)",
        ),
    ],
)
def test_a_policy_reads_as_it_was_written(retry: Retry, text: str) -> None:
    assert repr(retry) == text
    assert eval(text) == retry


@pytest.mark.parametrize("read", ["seconds", asked_seconds])
@pytest.mark.parametrize(
    "asked, wait",
    [
        (30, 30.0),
        (30.5, 30.5),
        ("30", 30.0),
        (timedelta(minutes=1), 60.0),
        (2, 5.0),
        (100_000, 600.0),
        (10**400, 5.0),
        (0, 5.0),
        (-30, 5.0),
        (True, 5.0),
        (None, 5.0),
        ("soon", 5.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 5.0),
        (float("nan"), 5.0),
        (float("inf"), 5.0),
        ([30], 5.0),
    ],
)
def test_an_error_may_ask_for_a_longer_wait_up_to_a_maximum(read: Any, asked: object, wait: float) -> None:
    retry = Retry(attempts=3, wait=fixed(5), retry_after=read, retry_after_max=600)
    assert _waits(retry, RateLimited(asked)) == [wait]


@pytest.mark.parametrize("read", ["seconds", asked_seconds])
def test_an_error_that_asks_for_nothing_gets_the_usual_wait(read: Any) -> None:
    assert _waits(Retry(attempts=3, wait=fixed(5), retry_after=read), ValueError()) == [5]


def test_what_an_error_asks_for_does_not_outlive_the_deadline() -> None:
    retry = Retry(deadline=20, wait=fixed(5), retry_after="seconds")
    assert retry.next_wait(RateLimited(15), attempt=1, elapsed=5) == 15
    assert retry.next_wait(RateLimited(16), attempt=1, elapsed=5) is None


def test_a_result_can_be_a_failure() -> None:
    retry = Retry(attempts=2, wait=fixed(1), on=(OSError,), on_result=lambda result: result == "pending")
    retry.check("paid")
    retry.check(None)
    with pytest.raises(Unsatisfied, match=r"^handle returned str, and on_result counts it as a failure$") as caught:
        retry.check("pending")
    assert _waits(retry, caught.value, caught.value) == [1, None]


def test_without_on_result_no_result_is_a_failure() -> None:
    Retry(attempts=1).check("pending")


def test_a_batch_handlers_result_is_not_looked_at_and_cannot_be_a_failure() -> None:
    class Bulk(BatchHandler[bytes]):
        name = "bulk"
        topic = "payments"
        message_id = header("message-id")
        retry = Retry(attempts=3, on_result=bool_of)

        async def handle_batch(self, events: Sequence[Received[bytes]], context: BatchContext) -> None: ...

    told = "Bulk (name 'bulk'): retry=Retry(attempts=3, on_result=bool_of) has on_result, and handle_batch's result"
    assert _raises(lambda: declare(Bulk())) == f"{told} is ignored; raise an error instead"


@pytest.mark.parametrize(
    "on, wait",
    [
        ({OSError: fixed(2)}, 1),
        ({Exception: None}, 1),
        ({Unsatisfied: fixed(2)}, 2),
        ({Unsatisfied: None}, None),
        ({Unsatisfied: Retry(attempts=5, wait=fixed(7))}, 7),
        (lambda error: False, 1),
    ],
)
def test_only_a_mapping_of_unsatisfied_itself_decides_about_results(on: Any, wait: float | None) -> None:
    retry = Retry(attempts=3, wait=fixed(1), on=on, on_result=bool_of)
    assert _waits(retry, Unsatisfied()) == [wait]


def test_policies_are_told_for_people() -> None:
    assert Retry(attempts=3).policies() == (("any", Retry(attempts=3)),)
    one = Retry(attempts=3, on=(OSError, KeyError), on_result=bool_of)
    assert one.policies() == (("OSError, KeyError, Unsatisfied", one),)
    assert Retry(attempts=3, on=bool_of).policies()[0][0] == "where bool_of"
    own = Retry(attempts=9)
    retry = Retry(attempts=3, in_place=2, on={OSError: fixed(1), KeyError: own, ValueError: None}, on_result=bool_of)
    assert retry.policies() == (
        ("OSError", Retry(attempts=3, in_place=2, wait=fixed(1), on_result=bool_of)),
        ("KeyError", Retry(attempts=9, in_place=2)),
        ("ValueError", None),
        ("Unsatisfied", Retry(attempts=3, in_place=2, on_result=bool_of)),
        ("any other", None),
    )


def _raises(make: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return str(caught.value)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({}, "Retry(): give attempts=, deadline= or both; a retry never goes on for ever"),
        ({"attempts": 0}, "Retry(attempts=0): attempts counts every invocation; give a whole number >= 1"),
        ({"attempts": True}, "Retry(attempts=True): attempts counts every invocation; give a whole number >= 1"),
        ({"attempts": 2.5}, "Retry(attempts=2.5): attempts counts every invocation; give a whole number >= 1"),
        ({"attempts": "3"}, "Retry(attempts='3'): attempts counts every invocation; give a whole number >= 1"),
        ({"deadline": 0}, "Retry(deadline=0): give a number of seconds > 0"),
        ({"deadline": float("nan")}, "Retry(deadline=nan): give a number of seconds > 0"),
        ({"deadline": float("inf")}, "Retry(deadline=inf): give a number of seconds > 0"),
        ({"deadline": "60"}, "Retry(deadline='60'): give a number of seconds > 0"),
        ({"attempts": 3, "wait": 5}, "Retry(wait=5): give a wait, such as exponential(...) or fixed(...)"),
        (
            {"attempts": 3, "on": TimeoutError},
            (
                "Retry(on=<class 'TimeoutError'>): give a tuple of exception classes, a plain function, or a mapping "
                "from class to policy"
            ),
        ),
        ({"attempts": 3, "on": (3,)}, "Retry(on=(3,)): give a tuple of exception classes"),
        (
            {"attempts": 3, "on": (KeyboardInterrupt,)},
            "Retry(on=(<class 'KeyboardInterrupt'>,)): give a tuple of exception classes",
        ),
        ({"attempts": 3, "on": 5}, "Retry(on=5): " + ON),
        ({"attempts": 3, "on": _coroutine}, f"Retry(on={_coroutine!r}): {ON}"),
        ({"attempts": 3, "on": {}}, "Retry(on={}): give at least one exception class with its policy"),
        (
            {"attempts": 3, "on": {"TimeoutError": None}},
            (
                "Retry(on={'TimeoutError': None}): 'TimeoutError' is no exception class; give a mapping from class to "
                "policy"
            ),
        ),
        (
            {"attempts": 3, "on": {TimeoutError: 5}},
            (
                "Retry(on={TimeoutError: 5}): TimeoutError has no policy; give it a Retry(...), a wait, or None for a "
                "dead letter"
            ),
        ),
        (
            {"attempts": 3, "on": {Reject: fixed(1)}},
            "Retry(on={Reject: fixed(1)}): Reject never meets a policy; leave it out",
        ),
        (
            {"on": {OSError: Retry(attempts=3, in_place=2)}},
            (
                "Retry(on={OSError: Retry(attempts=3, in_place=2)}): the Retry of OSError sets in_place, on_result or "
                "a mapping; set it on the outer one"
            ),
        ),
        ({"on": {OSError: fixed(1)}}, "Retry(): give attempts=, deadline= or both; a retry never goes on for ever"),
        (
            {"on": {OSError: None}, "on_result": bool_of},
            "Retry(): give attempts=, deadline= or both; a retry never goes on for ever",
        ),
        (
            {"attempts": 3, "on_result": 5},
            "Retry(on_result=5): give a plain function that takes a result and returns True or False",
        ),
        (
            {"attempts": 3, "retry_after": "a b"},
            "Retry(retry_after='a b'): give the name of an attribute of the error, or a function",
        ),
        (
            {"attempts": 3, "retry_after": 60},
            "Retry(retry_after=60): give a plain function that takes the error, or the name of an attribute",
        ),
        (
            {"attempts": 3, "retry_after": "seconds", "retry_after_max": 0},
            "Retry(retry_after_max=0): give a number of seconds > 0",
        ),
        (
            {"attempts": 3, "retry_after_max": 60},
            "Retry(retry_after_max=60): it bounds what retry_after reads; give retry_after= too",
        ),
    ],
)
def test_a_retry_that_cannot_be_meant_is_refused(arguments: dict[str, Any], text: str) -> None:
    assert _raises(lambda: Retry(**arguments)) == text


@pytest.mark.parametrize(
    "arguments",
    [
        {"initial": -1, "max": 3},
        {"initial": 5, "max": 3},
        {"initial": 1, "max": 3, "base": 0.5},
        {"initial": 1, "max": 3, "jitter": -0.1},
        {"initial": "1", "max": 3},
        {"initial": 1, "max": float("inf")},
        {"initial": float("nan"), "max": 3},
        {"initial": True, "max": 3},
    ],
)
def test_an_exponential_wait_that_cannot_be_meant_is_refused(arguments: dict[str, Any]) -> None:
    text = _raises(lambda: exponential(**arguments))
    assert text.startswith(f"exponential({arguments['initial']!r}, max={arguments['max']!r}, ")
    assert text.endswith("give numbers with 0 <= initial <= max, base >= 1 and jitter >= 0")


@pytest.mark.parametrize("seconds", [-1, float("inf"), "5", None, True])
def test_a_fixed_wait_that_cannot_be_meant_is_refused(seconds: Any) -> None:
    assert _raises(lambda: fixed(seconds)) == f"fixed({seconds!r}): give a number of seconds >= 0"
