"""Waits: their lengths, their variation, and that they are values."""

import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumerkit import ConfigurationError, Defer
from consumerkit.policies.wait import Wait, chain, exponential, fixed, uniform

SECONDS = st.floats(0, 10_000)


def _uniforms() -> st.SearchStrategy[Wait]:
    return st.tuples(SECONDS, SECONDS).map(sorted).map(lambda ends: uniform(*ends))


def _exponentials() -> st.SearchStrategy[Wait]:
    return st.builds(
        lambda initial, more, base, jitter: exponential(initial, max=initial + more, base=base, jitter=jitter),
        st.floats(0.001, 100),
        st.floats(0, 1000),
        st.floats(1, 10),
        st.floats(0, 3),
    )


WAITS = st.recursive(
    st.builds(fixed, SECONDS) | _uniforms() | _exponentials(),
    lambda inner: st.builds(lambda a, b: a + b, inner, inner) | st.lists(inner, min_size=1).map(lambda w: chain(*w)),
    max_leaves=6,
)


@given(WAITS, st.integers(1, 10_000), st.randoms(use_true_random=False))
def test_every_wait_that_is_drawn_lies_within_its_bounds(wait: Wait, attempt: int, source: random.Random) -> None:
    low, high = wait.bounds(attempt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "random", source.random)
        drawn = [wait.after(attempt) for _ in range(5)]
    assert 0 <= low <= min(drawn) <= max(drawn) <= high


@given(WAITS, st.integers(1, 100))
def test_the_bounds_are_reached(wait: Wait, attempt: int) -> None:
    low, high = wait.bounds(attempt)
    for dice, bound in ((0.0, low), (1 - 2**-53, high)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(random, "random", lambda dice=dice: dice)
            assert wait.after(attempt) == pytest.approx(bound)


@given(_exponentials(), st.integers(1, 10_000))
def test_jitter_never_passes_the_cap(wait: Wait, attempt: int) -> None:
    cap = wait.bounds(100_000)[1]
    assert wait.bounds(attempt)[1] <= cap


def test_bounds_are_those_of_the_parts() -> None:
    assert fixed(5).bounds(3) == (5, 5)
    assert uniform(1, 4).bounds(9) == (1, 4)
    assert exponential(1, max=7, jitter=0.5).bounds(3) == (4, 6)
    assert exponential(1, max=7, jitter=0.5).bounds(4) == (7, 7)
    assert (exponential(1, max=100, jitter=1) + uniform(0, 3)).bounds(2) == (2, 7)
    assert chain(fixed(1), uniform(2, 3)).bounds(1) == (1, 1)
    assert chain(fixed(1), uniform(2, 3)).bounds(2) == chain(fixed(1), uniform(2, 3)).bounds(77) == (2, 3)


def test_a_chain_goes_through_its_waits_and_stays_with_the_last() -> None:
    assert [chain(fixed(1), fixed(5), fixed(60)).after(n) for n in (1, 2, 3, 4, 500)] == [1, 5, 60, 60, 60]


def test_a_growing_wait_in_a_chain_counts_from_the_first_attempt() -> None:
    assert chain(fixed(1), exponential(1, max=60, jitter=0)).after(4) == 8


def test_waits_add_up() -> None:
    assert (fixed(1) + fixed(2) + fixed(3)).after(1) == 6
    assert sum([fixed(1), fixed(2)], start=fixed(0)).after(1) == 3
    assert sum([fixed(1), fixed(2)]) == fixed(1) + fixed(2)


@pytest.mark.parametrize(
    "wait, text",
    [
        (fixed(5), "fixed(5)"),
        (uniform(1, 2.5), "uniform(1, 2.5)"),
        (exponential(1, max=300), "exponential(1, max=300)"),
        (exponential(1, max=300, base=3, jitter=0), "exponential(1, max=300, base=3, jitter=0)"),
        (fixed(1) + uniform(0, 2), "fixed(1) + uniform(0, 2)"),
        (chain(fixed(1), fixed(2) + fixed(3)), "chain(fixed(1), fixed(2) + fixed(3))"),
    ],
)
def test_waits_are_values_that_read_as_they_were_written(wait: Wait, text: str) -> None:
    assert repr(wait) == text
    again = eval(text)
    assert (again, hash(again)) == (wait, hash(wait))
    travelled = pickle.loads(pickle.dumps(wait))
    assert travelled == wait != fixed(77)
    assert travelled.bounds(3) == wait.bounds(3)
    with pytest.raises(AttributeError):
        wait.description = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: uniform(3, 1), "uniform(3, 1): give numbers of seconds with 0 <= low <= high"),
        (lambda: uniform(-1, 1), "uniform(-1, 1): give numbers of seconds with 0 <= low <= high"),
        (lambda: uniform("1", 2), ("uniform('1', 2): give numbers of seconds with 0 <= low <= high")),  # type: ignore[arg-type]
        (lambda: uniform(0, float("inf")), "uniform(0, inf): give numbers of seconds with 0 <= low <= high"),
        (lambda: chain(), "chain(): give one wait or more, such as chain(fixed(1), fixed(60))"),
        (lambda: chain(fixed(1), 5), ("chain(fixed(1), 5): give one wait or more, such as chain(fixed(1), fixed(60))")),  # type: ignore[arg-type]
        (lambda: fixed(1) + 5, "fixed(1) + 5: add a wait, such as fixed(...)"),  # type: ignore[operator]
        (lambda: 5 + fixed(1), "5 + fixed(1): add a wait, such as fixed(...)"),
        (lambda: False + fixed(1), "False + fixed(1): add a wait, such as fixed(...)"),
    ],
)
def test_a_wait_that_cannot_be_meant_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert str(caught.value) == text


TEN_YEARS = 315_576_000


@pytest.mark.parametrize(
    "make, what",
    [
        (lambda: fixed(1e18), "fixed(1e+18)"),
        (lambda: fixed(TEN_YEARS + 1), "fixed(315576001)"),
        (lambda: uniform(0, 1e12), "uniform(0, 1000000000000.0)"),
        (lambda: exponential(1, max=1e18), "exponential(1, max=1e+18)"),
    ],
)
def test_a_wait_that_no_database_can_add_is_refused_where_it_is_made(make: Callable[[], Wait], what: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert str(caught.value) == f"{what}: give at most 315576000 seconds (ten years)"


def test_waits_added_up_stay_within_the_bound() -> None:
    assert (fixed(TEN_YEARS) + fixed(TEN_YEARS)).after(1) == TEN_YEARS
    assert exponential(1, max=TEN_YEARS, jitter=1e9, base=1e300).after(5000) == TEN_YEARS


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -1, 0, 1e18])
def test_defer_refuses_what_is_no_wait(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"Defer\("):
        Defer(seconds)
