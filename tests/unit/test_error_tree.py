"""Errors within errors: their leaves decide, and nothing is recursive."""

import pytest

from consumerkit import Defer, Reject, Retry, fixed
from consumerkit.error_tree import MOST, all_in, deciding, first_leaf, leaves, raised_from
from consumerkit.storage.faults import Fault, fault_of


def nested(error: Exception, depth: int) -> Exception:
    for _ in range(depth):
        error = ExceptionGroup("g", [error])
    return error


@pytest.mark.parametrize("depth", [0, 1, 5_000])
def test_a_leaf_is_found_however_deep(depth: int) -> None:
    error = ValueError("x")
    deep = nested(error, depth)
    assert leaves(deep) == [error]
    assert first_leaf(deep) is error
    assert Retry(attempts=2, wait=fixed(3), on=(ValueError,)).next_wait(deep, attempt=1, elapsed=0) == 3
    assert fault_of(deep, in_handler=True) is Fault.HANDLER
    assert fault_of(nested(ConnectionError(), depth), in_handler=False) is Fault.CONNECTION


def test_what_is_deeper_than_anything_comes_to_an_end() -> None:
    deep = nested(ValueError("x"), MOST + 5)
    assert len(leaves(deep)) == 1
    assert sum(1 for _ in all_in(deep)) <= MOST
    chain: BaseException = ValueError()
    for _ in range(MOST + 5):
        new = ValueError()
        new.__cause__, chain = chain, new
    assert sum(1 for _ in all_in(chain)) <= MOST


def test_the_leaves_come_in_order_and_a_circle_once() -> None:
    a, b, c = ValueError("a"), KeyError("b"), OSError("c")
    assert leaves(ExceptionGroup("", [a, ExceptionGroup("", [b]), c])) == [a, b, c]
    a.__cause__, b.__cause__ = b, a
    assert list(all_in(a)) == [a, b]


@pytest.mark.parametrize("errors", [[OSError(1), Defer(3), Reject("why")], [Reject("why"), Defer(3), OSError(1)]])
def test_a_reject_decides_before_a_defer_and_a_defer_before_any_other(errors: list[Exception]) -> None:
    group = ExceptionGroup("", [ExceptionGroup("", errors)])
    assert isinstance(deciding(group, Reject, Defer), Reject)
    without = ExceptionGroup("", [one for one in errors if not isinstance(one, Reject)])
    assert isinstance(deciding(without, Reject, Defer), Defer)
    assert deciding(plain := ExceptionGroup("", [OSError(1)]), Reject, Defer) is plain


def test_a_retry_asks_every_error_of_a_group() -> None:
    policy = Retry(attempts=3, wait=fixed(1), on={TimeoutError: fixed(2), OSError: fixed(5)}, retry_after="after")
    slow = TimeoutError()
    slow.after = 9  # type: ignore[attr-defined]

    def wait(*errors: Exception) -> float | None:
        return policy.next_wait(ExceptionGroup("", list(errors)), attempt=1, elapsed=0)

    assert wait(TimeoutError(), OSError()) == 5
    assert wait(slow, OSError()) == 9
    assert wait(TimeoutError(), ValueError()) is None
    assert wait(TimeoutError(), Reject("why")) is None
    asked: list[BaseException] = []

    def predicate(error: BaseException) -> bool:
        asked.append(error)
        return True

    errors = [ValueError(1), KeyError(2)]
    assert Retry(attempts=2, wait=fixed(1), on=predicate).next_wait(ExceptionGroup("", errors), attempt=1, elapsed=0)
    assert asked == errors


def test_a_class_of_groups_that_is_named_is_asked_of_the_whole() -> None:
    group = ExceptionGroup("", [ValueError()])
    assert Retry(attempts=2, wait=fixed(1), on=(ExceptionGroup,)).next_wait(group, attempt=1, elapsed=0) == 1
    assert Retry(attempts=2, on={ExceptionGroup: fixed(4)}).next_wait(group, attempt=1, elapsed=0) == 4


class Odd(Exception):
    """Raises whatever it is asked."""

    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise SystemExit(3)

    __context__ = __suppress_context__ = __traceback__ = __cause__  # type: ignore[assignment]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise KeyboardInterrupt


def test_an_errors_own_attributes_are_not_asked() -> None:
    odd = Odd()
    assert raised_from(odd) is None
    assert leaves(odd) == [odd]
    assert fault_of(odd, in_handler=True) is Fault.HANDLER


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError, ValueError])
def test_a_predicate_that_raises_anything_counts_as_yes(kind: type[BaseException]) -> None:
    def raises(_error: BaseException) -> bool:
        raise kind

    policy = Retry(attempts=2, wait=fixed(1), on=raises, retry_after=raises)
    assert policy.next_wait(ValueError(), attempt=1, elapsed=0) == 1
