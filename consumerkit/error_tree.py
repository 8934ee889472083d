"""Errors within errors: the leaves of an exception group, and the error that an error was raised from.

An error and its class may be the user's: this module reads errors without what the class overrides.
Nothing here is recursive, and all loops are limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, TypeGuard, TypeVar

E = TypeVar("E", bound=BaseException)

MOST: Final = 10_000
"""The most errors that are looked at in one exception group or chain; usual errors have a few."""

_cause: Callable[[BaseException], BaseException | None] = vars(BaseException)["__cause__"].__get__
_context: Callable[[BaseException], BaseException | None] = vars(BaseException)["__context__"].__get__
_suppresses: Callable[[BaseException], bool] = vars(BaseException)["__suppress_context__"].__get__
_traceback: Callable[[BaseException], TracebackType | None] = vars(BaseException)["__traceback__"].__get__
_members: Callable[[BaseException], tuple[BaseException, ...]] = vars(BaseExceptionGroup)["exceptions"].__get__


def is_a(error: BaseException, kind: type[E]) -> TypeGuard[E]:
    """Tell whether an error is of a class, whatever its `__class__` says."""
    return issubclass(type(error), kind)


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors in an exception group that are no groups, in order, at any depth; else the error itself.

    Example:
        >>> leaves(ExceptionGroup("a", [ValueError(1), ExceptionGroup("b", [KeyError(2)])]))
        [ValueError(1), KeyError(2)]
    """
    if not is_a(error, BaseExceptionGroup):
        return [error]
    found: list[BaseException] = []
    left: list[BaseException] = [error]
    for _ in range(MOST):
        if not left:
            break
        one = left.pop()
        members = _group(one)
        if members:
            left.extend(reversed(members))
        else:
            found.append(one)
    return found or [error]


def first_leaf(error: BaseException) -> BaseException:
    """Return the first error in an exception group that is no group; its text, stack and place stand for the group."""
    for _ in range(MOST):
        if not is_a(error, BaseExceptionGroup):
            break
        error = _members(error)[0]
    return error


def deciding(error: Exception, *kinds: type[Exception]) -> Exception:
    """Return the leaf that decides a message's outcome: the first of the first class that occurs, or the error.

    Example:
        >>> deciding(ExceptionGroup("", [ValueError(1), KeyError(2)]), KeyError, ValueError)
        KeyError(2)
    """
    found = leaves(error)
    for kind in kinds:
        for leaf in found:
            if is_a(leaf, kind) and isinstance(leaf, Exception):
                return leaf
    return error


def raised_from(error: BaseException) -> BaseException | None:
    """Return the error that an error was raised from, as Python would show it."""
    return _cause(error) or (None if _suppresses(error) else _context(error))


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return an error's traceback."""
    return _traceback(error)


def all_in(error: BaseException, *, suppressed: bool = False) -> Iterator[BaseException]:
    """Yield an error, the members of exception groups, and the causes of each; each once, and at most `MOST`.

    Args:
        error: The error.
        suppressed: Whether to include the error that was being handled, where `raise ... from`
            hides it.
    """
    left, seen = [error], {id(error)}
    while left:
        one = left.pop()
        yield one
        causes = [_cause(one), _context(one)] if suppressed else [raised_from(one)]
        further = [*(cause for cause in causes if cause is not None), *reversed(_group(one))]
        for other in further:
            if id(other) not in seen and len(seen) < MOST:
                seen.add(id(other))
                left.append(other)


def _group(error: BaseException) -> tuple[BaseException, ...]:
    return _members(error) if is_a(error, BaseExceptionGroup) else ()
