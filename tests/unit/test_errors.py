"""One tree of errors, and a `Reject` that can blame one event."""

import copy
import importlib
import inspect
import logging
import multiprocessing
import pickle
import pkgutil
from concurrent.futures import ProcessPoolExecutor

import pytest

import consumerkit
from consumerkit import ConsumerkitError, Defer, Reject, Unavailable, errors


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


def test_a_rejection_without_a_reason_says_so_and_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    errors._warn_of_no_reason.cache_clear()

    def reject(rejection: Reject | type[Reject]) -> str:
        try:
            raise rejection
        except Reject as error:
            return str(error)

    with caplog.at_level(logging.WARNING, "consumerkit.errors"):
        assert [reject(one) for one in (Reject, Reject(), Reject(of=3), Reject(""))] == [*["no reason given"] * 3, ""]
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "a handler raises Reject without a reason"
    ]


def test_a_rejection_survives_a_process_boundary() -> None:
    again = pickle.loads(pickle.dumps(Reject("why", of=3)))
    assert (str(again), again.of) == ("why", 3)


def every_exception() -> list[type[BaseException]]:
    for module in pkgutil.walk_packages(consumerkit.__path__, "consumerkit."):
        if ".migrations" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, left = set(), [BaseException]
    while left:
        for kind in left.pop().__subclasses__():
            left.append(kind)
            if kind.__module__.partition(".")[0] == "consumerkit":
                found.add(kind)
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


def made(kind: type[BaseException]) -> BaseException:
    if "__init__" not in vars(kind) and not issubclass(kind, Reject | Defer):
        return kind("why")
    required = [one for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
    given = {"seconds": 3.0}
    positional = [one for one in required if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return kind(*(given.get(one.name, "why") for one in positional))


def test_every_error_of_ours_survives_a_process_boundary() -> None:
    kinds = every_exception()
    assert {Reject, Defer, Unavailable} <= set(kinds)
    for kind in kinds:
        error = made(kind)
        error.add_note("a note")
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(again) is kind
            assert (again.args, str(again), vars(again)) == (error.args, str(error), vars(error))


class Refused(Reject):
    """A user's own, whose `__init__` takes other arguments than it passes on."""

    def __init__(self, account: int, /, *, why: str) -> None:
        super().__init__(f"{account}: {why}")
        self.account = account


def raise_in_a_pool(what: str) -> None:
    if what == "reject":
        raise Reject("why", of=3)
    if what == "own":
        raise Refused(7, why="closed")
    raise Defer(60, "closed")


def test_what_is_raised_in_a_process_pool_is_what_comes_out() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(Reject, match=r"^why$") as rejected:
            pool.submit(raise_in_a_pool, "reject").result()
        with pytest.raises(Refused, match=r"^7: closed$") as refused:
            pool.submit(raise_in_a_pool, "own").result()
        with pytest.raises(Defer, match=r"^closed$") as deferred:
            pool.submit(raise_in_a_pool, "defer").result()
    assert (rejected.value.of, refused.value.account, deferred.value.seconds) == (3, 7, 60.0)


def test_a_rejections_culprit_is_given_by_name() -> None:
    with pytest.raises(TypeError):
        Reject("why", object())  # type: ignore[call-arg]
