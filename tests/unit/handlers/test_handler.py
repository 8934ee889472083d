"""The base classes carry defaults and documentation, and no behaviour."""

import inspect
from typing import Any

import pytest

from consumerkit import (
    BatchHandler,
    DeadLetter,
    Events,
    Handler,
    Message,
    Ordering,
    Received,
    Retry,
    exponential,
    header,
)
from consumerkit.handlers.message_id import WHOLE_VALUE


@pytest.mark.parametrize("base", [Handler, BatchHandler])
def test_what_must_be_declared_has_no_default(base: type[Any]) -> None:
    assert not any(hasattr(base, name) for name in ("name", "topic", "topics", "group", "message_id"))


@pytest.mark.parametrize("base", [Handler, BatchHandler])
def test_defaults(base: type[Any]) -> None:
    assert base.retry == Retry(attempts=5, wait=exponential(1, max=60))
    assert (base.scope, base.ordering, base.start_from) == ("consumer", Ordering.KEY, "earliest")
    assert (base.dead_letter, base.events, base.size_limit) == (None, None, 1_048_576)
    assert base.fingerprint is WHOLE_VALUE
    assert repr(base.codec) == "Json()"


def test_every_declaration_is_documented() -> None:
    declared = Handler.__mro__[1]
    assert declared.__doc__ is not None
    for name in set(declared.__annotations__) - {"OPTIONAL_METHODS"}:
        assert f"\n        {name}: " in inspect.cleandoc(declared.__doc__).replace("\n    ", "\n        "), name


def test_the_bases_own_methods_do_nothing() -> None:
    with pytest.raises(NotImplementedError):
        Handler[Any]().handle(None, None)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        BatchHandler[Any]().handle_batch([], None)  # type: ignore[arg-type]
    assert not inspect.iscoroutinefunction(Handler.handle)


@pytest.mark.parametrize(
    "value, attribute",
    [
        (DeadLetter("dlq"), "topic"),
        (Events(by=header("type"), types={"a": int}), "unknown"),
        (Received(1, Message("t", 0, 0), "id", 1), "event"),
        (Retry(attempts=1), "attempts"),
        (header("id"), "sources"),
    ],
)
def test_declared_values_are_frozen(value: object, attribute: str) -> None:
    with pytest.raises(AttributeError):
        setattr(value, attribute, "other")


def test_orderings_are_few_and_named() -> None:
    assert [each.name for each in Ordering] == ["PARTITION", "KEY", "NONE"]
