"""One tree of errors, and a `Reject` that can name its culprit."""

import inspect
import pickle

import pytest

from consumerkit import ConsumerkitError, Reject, errors


def test_every_error_is_in_the_tree_and_in_its_drawing() -> None:
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__]
    assert all(issubclass(each, ConsumerkitError) for each in classes)
    assert errors.__doc__ is not None
    assert all(each.__name__ in errors.__doc__ for each in classes)


def test_a_rejection_says_why_and_of_which_event() -> None:
    event = object()
    rejection = Reject("account is closed", of=event)
    assert (str(rejection), rejection.of) == ("account is closed", event)
    assert Reject("why").of is None


def test_a_rejection_survives_a_process_boundary() -> None:
    again = pickle.loads(pickle.dumps(Reject("why", of=3)))
    assert (str(again), again.of) == ("why", 3)


def test_a_rejections_culprit_is_given_by_name() -> None:
    with pytest.raises(TypeError):
        Reject("why", object())  # type: ignore[call-arg]
