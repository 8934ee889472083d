"""Describing an error raises nothing, and is bounded in every part."""

import traceback
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError, StatementError

from consumerkit import Defer, Reject
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.delivery import Delivery
from consumerkit.engine.transaction.error_place import place_of
from consumerkit.error_tree import traceback_of
from consumerkit.message import Message
from consumerkit.outcome import Reason
from tests.unit.test_error_tree import Odd, nested

DESCRIBE: list[Callable[[BaseException], str | None]] = [
    failures.error_type,
    failures.error_text,
    failures.recorded_text,
    failures.described,
    failures.stack_of,
    place_of,
]
MOST = 40_000


class Talks(Exception):
    def __init__(self, raises: Any) -> None:
        self.raises = raises

    def __str__(self) -> str:
        if isinstance(self.raises, type):
            raise self.raises
        return self.raises  # type: ignore[no-any-return]

    __repr__ = __str__


class Stubborn(str):
    """Text that cannot be cut, measured, or written."""

    __slots__ = ()

    def refuse(self, *_: Any) -> Any:
        raise SystemExit

    __str__ = __len__ = __getitem__ = __add__ = __format__ = refuse


def huge(name: str, *bases: type) -> type[Exception]:
    return type(name, (*bases, Exception) if bases else (Exception,), {"__module__": name})


class OddOrigin(DBAPIError):
    def __init__(self) -> None:
        super().__init__("SELECT 1", None, ValueError())
        self.orig = Talks(SystemExit)


ERRORS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: Talks(SystemExit),
    "KeyboardInterrupt": lambda: Talks(KeyboardInterrupt),
    "an error": lambda: Talks(ValueError),
    "no memory": lambda: Talks(MemoryError),
    "no text": lambda: Talks(3),
    "very long": lambda: Talks("x" * 10_000_000),
    "text of its own kind": lambda: Talks(Stubborn("secret")),
    "its attributes": Odd,
    "a class name of 3 MB": lambda: huge("N" * 3_000_000)("x"),
    "a Reject with such a name": lambda: type("N" * 3_000_000, (Reject,), {})("why"),
    "raised by raising": lambda: Talks(type("T" * 3_000_000, (SystemExit,), {})),
    "a database's": OddOrigin,
    "a statement's": lambda: StatementError(Talks(SystemExit), "SELECT 1", None, ValueError()),  # type: ignore[arg-type]
    "without args": lambda: StatementError.__new__(StatementError),
    "a group 5,000 deep": lambda: nested(Talks(SystemExit), 5_000),
}


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def asked(describe: Callable[[BaseException], str | None], error: BaseException) -> str:
    """Return what is wrong with a description; pytest itself would fall over such an error in an assertion."""
    try:
        text = describe(error)
    except BaseException as trouble:
        frames = traceback.extract_tb(traceback_of(trouble))
        return f"{type(trouble).__name__[:99]} at {frames[-1]} {frames[-2:-1]}"
    return "fine" if text is None or (type(text) is str and len(text) <= MOST) else f"{type(text)} {len(text)}"


@pytest.mark.parametrize("describe", DESCRIBE)
@pytest.mark.parametrize("name", ERRORS)
def test_describing_an_error_raises_nothing_and_is_bounded(
    name: str, describe: Callable[[BaseException], str | None]
) -> None:
    above = RuntimeError("above")
    above.__cause__ = raised(ERRORS[name]())
    for found in (asked(describe, raised(ERRORS[name]())), asked(describe, above)):
        assert found == "fine"


def test_the_frames_of_a_function_with_a_name_of_megabytes_are_bounded() -> None:
    name = "f" * 3_000_000
    scope: dict[str, Any] = {}
    exec(f"def {name}(n):\n    if n: {name}(n - 1)\n    raise ValueError\n", scope)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        scope[name](50)
    assert len(failures.stack_of(caught.value)) <= failures.STACK_BYTES
    assert len(place_of(caught.value) or "") < 1000


def test_a_group_is_told_by_its_first_leaf() -> None:
    def fails() -> None:
        raise LookupError("what the first one says")

    with pytest.raises(LookupError) as caught:
        fails()
    leaf = ExceptionGroup("", [caught.value])
    group = ExceptionGroup("unhandled errors in a TaskGroup", [leaf, ValueError("second")])
    item = Delivery(Message("t", 0, 7), None, bytes(16), "m", b"f" * 16)
    dead = failures.from_error(item, Reason.EXHAUSTED, group, attempts=1, first_failed_at=None)
    assert (dead.error_type, dead.error) == ("LookupError", "what the first one says")
    assert dead.place is not None
    assert dead.place.endswith("in fails")
    assert "in fails" in dead.stack
    assert failures.described(group).startswith("LookupError at ")
    parked = failures.parked(item, group, attempts=1, wait=1, first_failed_at=None)
    assert (parked.error_type, parked.error) == ("LookupError", "what the first one says")
    assert failures.described(ExceptionGroup("", [Defer(3, "closed")])) == "Defer: closed"
