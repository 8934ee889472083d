"""How often, how long and after which errors a handler is tried again.

Nothing here sleeps: time is an argument, so that the engine decides without waiting, and every
retry ends.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from typing import Any, NoReturn, TypeAlias

from consumerkit.error_tree import leaves
from consumerkit.errors import LONGEST_WAIT, ConfigurationError, Defer, Reject, Unsatisfied
from consumerkit.policies.wait import Wait, chain, exponential, fixed, is_number, uniform

__all__ = ["Retry", "Wait", "chain", "exponential", "fixed", "uniform"]

RETRY_AFTER_MAX = 3600.0

Errors: TypeAlias = (
    "tuple[type[BaseException], ...] | Callable[[Any], bool] | Mapping[type[Exception], Retry | Wait | None]"
)


class _Rules(Mapping[type[Exception], "Retry | Wait | None"]):
    """A mapping that cannot be changed, and that can be hashed and pickled."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Mapping[type[Exception], Retry | Wait | None]) -> None:
        self._rules = dict(rules)

    def __getitem__(self, kind: type[Exception]) -> Retry | Wait | None:
        return self._rules[kind]

    def __iter__(self) -> Iterator[type[Exception]]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __hash__(self) -> int:
        return hash(frozenset(self._rules.items()))

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{_shown(kind)}: {rule!r}" for kind, rule in self.items()) + "}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Retry:
    """A handler's retry policy.

    Args:
        attempts: Invocations in all, the first one included, whatever errors they ended with.
        deadline: Seconds since the first failure after which no further attempt begins.
        wait: The wait between attempts.
        on: The errors worth another attempt; any other error is dead-lettered at once. `Reject`
            never is worth one. A tuple of classes; or a predicate that gets the error (if it
            raises, that counts as True); or a mapping from class to policy. In a mapping the most
            specific class of an error decides: a `Wait` replaces `wait`, None means a dead letter
            at once, and a `Retry` replaces everything here but `in_place`.
        in_place: How many of the attempts run at once, one after another, while the lane waits;
            after them the message is parked in the database, where its attempts outlive the
            process.
        on_result: Called with the result of `handle`; True makes it a failure, the error
            `Unsatisfied`, which is worth another attempt unless `on` maps `Unsatisfied` itself to
            something else.
        retry_after: Reads from an error the seconds that it asks to wait: a function, or the name
            of an attribute. A number, a number as text or a timedelta lengthens the wait; any other
            value leaves it unchanged.
        retry_after_max: The most seconds that an error may ask for; a larger value counts as this
            one.

    Each error in a group of errors, as `asyncio.TaskGroup` raises it, is checked: one error that is
    not worth another attempt ends the attempts, otherwise the longest wait counts. `on` may also
    name a class of groups.

    Only a failure of the message alone counts as an attempt: a failure in a batch may be another
    message's fault, and trouble of the database or the broker is no message's fault. Attempts are
    counted over all errors of a message: after two timeouts, a third failure of another kind is the
    third attempt of that kind's policy.

    Raises:
        ConfigurationError: An argument is invalid, or nothing would end the attempts.

    Example:
        >>> policy = Retry(attempts=3, wait=fixed(2), on=(TimeoutError,))
        >>> policy.next_wait(TimeoutError(), attempt=1, elapsed=0.0)
        2.0
        >>> policy.next_wait(TimeoutError(), attempt=3, elapsed=4.0) is None
        True
        >>> policy = Retry(attempts=3, on={TimeoutError: fixed(2), OSError: Retry(attempts=9, wait=fixed(60))})
        >>> policy.next_wait(ConnectionError(), attempt=8, elapsed=4.0)
        60.0
    """

    attempts: int | None = None
    deadline: float | None = None
    wait: Wait = field(default_factory=lambda: exponential(1, max=60))
    on: Errors = (Exception,)
    in_place: int = 1
    on_result: Callable[[Any], bool] | None = None
    retry_after: Callable[[Any], object] | str | None = None
    retry_after_max: float = RETRY_AFTER_MAX

    def __post_init__(self) -> None:
        if isinstance(self.on, Mapping):
            object.__setattr__(self, "on", _Rules(self.on))
        self._check_on()
        self._check_ends()
        if type(self.in_place) is not int or self.in_place < 1:
            self._refuse("in_place", "give a whole number >= 1")
        if type(self.wait) is not Wait:
            self._refuse("wait", "give a wait, such as exponential(...) or fixed(...)")
        if self.on_result is not None and not _is_plain_function(self.on_result):
            self._refuse("on_result", "give a plain function that takes a result and returns True or False")
        self._check_retry_after()

    def next_wait(self, error: BaseException, *, attempt: int, elapsed: float) -> float | None:
        """Return the seconds until the next attempt, or None when there is none.

        Args:
            error: What the last attempt raised.
            attempt: Its number, from 1.
            elapsed: Seconds since the first attempt failed.
        """
        found = leaves(error)
        if found != [error] and not self._names(error):
            waits = [self._next_wait(leaf, attempt, elapsed) for leaf in found]
            return None if None in waits else max(wait for wait in waits if wait is not None)
        return self._next_wait(error, attempt, elapsed)

    def _names(self, error: BaseException) -> bool:
        """Return whether `on` names a class of groups that an error belongs to; the group then counts as a whole."""
        kinds: Iterable[type] = () if callable(self.on) else self.on
        return any(issubclass(kind, BaseExceptionGroup) and isinstance(error, kind) for kind in kinds)

    def _next_wait(self, error: BaseException, attempt: int, elapsed: float) -> float | None:
        rule = self._rule(error)
        if isinstance(rule, Retry):
            return rule.next_wait(error, attempt=attempt, elapsed=elapsed)
        if rule is None or (self.attempts is not None and attempt >= self.attempts):
            return None
        wait = max(rule.after(attempt), self._asked(error))
        if self.deadline is not None and elapsed + wait > self.deadline:
            return None
        return wait

    def check(self, result: object) -> None:
        """Check a handler's result.

        Raises:
            Unsatisfied: `on_result` makes it a failure.
            Exception: Whatever `on_result` raises.
        """
        if self.on_result is not None and self.on_result(result):
            raise Unsatisfied(f"handle returned {type(result).__qualname__}, and on_result counts it as a failure")

    def policies(self) -> tuple[tuple[str, Retry | None], ...]:
        """Return, for people, which errors meet which policy; None means a dead letter at once.

        Each policy is complete, `in_place` included; none of them has a mapping.
        """
        if not isinstance(self.on, Mapping):
            also = "" if self.on_result is None or self.on == (Exception,) else f", {_shown(Unsatisfied)}"
            return ((_described(self.on) + also, self),)
        found = [(_shown(kind), self._whole(rule)) for kind, rule in self.on.items()]
        if self.on_result is not None and Unsatisfied not in self.on:
            found.append((_shown(Unsatisfied), self._whole(self.wait)))
        if Exception not in self.on:
            found.append(("any other", None))
        return tuple(found)

    def _whole(self, rule: Retry | Wait | None) -> Retry | None:
        if isinstance(rule, Retry):
            return replace(rule, in_place=self.in_place)
        return None if rule is None else replace(self, wait=rule, on=(Exception,))

    def _rule(self, error: BaseException) -> Retry | Wait | None:
        if isinstance(error, Reject):
            return None
        if isinstance(error, Unsatisfied):
            return self.on.get(Unsatisfied, self.wait) if isinstance(self.on, Mapping) else self.wait
        if isinstance(self.on, Mapping):
            return next((self.on[kind] for kind in type(error).__mro__ if kind in self.on), None)
        if isinstance(self.on, tuple):
            return self.wait if isinstance(error, self.on) else None
        try:
            return self.wait if self.on(error) else None
        except BaseException:  # noqa: BLE001 - a broken predicate must neither stop the lane nor give up what may succeed
            return self.wait

    def _asked(self, error: BaseException) -> float:
        """Return the seconds that an error asks to wait; 0 if it asks for nothing sensible."""
        if self.retry_after is None:
            return 0.0
        try:
            read = self.retry_after
            asked = getattr(error, read, None) if isinstance(read, str) else read(error)
            return min(_seconds(asked), self.retry_after_max)
        except BaseException:  # noqa: BLE001 - the reader meets errors that it was not written for; the wait is then as usual
            return 0.0

    def _check_on(self) -> None:
        on = self.on
        if isinstance(on, Mapping):
            self._check_rules(on)
        elif isinstance(on, tuple):
            if not all(map(_is_exception, on)):
                self._refuse("on", "give a tuple of exception classes")
        elif not _is_plain_function(on):
            self._refuse("on", "give a tuple of exception classes, a plain function, or a mapping from class to policy")

    def _check_rules(self, rules: Mapping[type[Exception], Retry | Wait | None]) -> None:
        if not rules:
            self._refuse("on", "give at least one exception class with its policy")
        for kind, rule in rules.items():
            name = _shown(kind)
            if not _is_exception(kind):
                self._refuse("on", f"{name} is no exception class; give a mapping from class to policy")
            if issubclass(kind, Reject | Defer):
                self._refuse("on", f"{name} never meets a policy; leave it out")
            if rule is not None and not isinstance(rule, Retry | Wait):
                self._refuse("on", f"{name} has no policy; give it a Retry(...), a wait, or None for a dead letter")
            if isinstance(rule, Retry) and _has_outer_arguments(rule):
                self._refuse(
                    "on", f"the Retry of {name} sets in_place, on_result or a mapping; set it on the outer one"
                )

    def _check_ends(self) -> None:
        if self.attempts is None and self.deadline is None and self._is_used():
            raise ConfigurationError("Retry(): give attempts=, deadline= or both; a retry never goes on for ever")
        if self.attempts is not None and not (type(self.attempts) is int and self.attempts >= 1):
            self._refuse("attempts", "attempts counts every invocation; give a whole number >= 1")
        if self.deadline is not None and not (is_number(self.deadline) and self.deadline > 0):
            self._refuse("deadline", "give a number of seconds > 0")

    def _is_used(self) -> bool:
        """Return whether any error meets this policy's own limits instead of a rule's."""
        if not isinstance(self.on, Mapping):
            return True
        unsatisfied = self.on_result is not None and Unsatisfied not in self.on
        return unsatisfied or any(isinstance(rule, Wait) for rule in self.on.values())

    def _check_retry_after(self) -> None:
        read, most = self.retry_after, self.retry_after_max
        if isinstance(read, str):
            if not read.isidentifier():
                self._refuse("retry_after", "give the name of an attribute of the error, or a function")
        elif read is not None and not _is_plain_function(read):
            self._refuse("retry_after", "give a plain function that takes the error, or the name of an attribute")
        if not (is_number(most) and most > 0):
            self._refuse("retry_after_max", "give a number of seconds > 0")
        if most > LONGEST_WAIT:
            self._refuse("retry_after_max", f"give at most {LONGEST_WAIT:.0f} seconds (ten years)")
        if read is None and most != RETRY_AFTER_MAX:
            self._refuse("retry_after_max", "it bounds what retry_after reads; give retry_after= too")

    def _refuse(self, argument: str, way_out: str) -> NoReturn:
        shown = " ".join(repr(getattr(self, argument)).split())
        raise ConfigurationError(f"Retry({argument}={shown}): {way_out}")

    def __repr__(self) -> str:
        given = []
        for one in fields(self):
            value = getattr(self, one.name)
            if value != (exponential(1, max=60) if one.name == "wait" else one.default):
                given.append(f"{one.name}={_shown(value)}")
        return f"Retry({', '.join(given)})"


def _has_outer_arguments(rule: Retry) -> bool:
    return isinstance(rule.on, Mapping) or rule.on_result is not None or rule.in_place != 1


def _is_exception(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)


def _is_plain_function(value: object) -> bool:
    """Return whether a value is a plain function: a class is no predicate, and a coroutine would always be true."""
    return callable(value) and not isinstance(value, type) and not inspect.iscoroutinefunction(value)


def _seconds(asked: object) -> float:
    """Return the seconds that an error asks for, 0 if it asks for none.

    Raises:
        Exception: It is no number.
    """
    if isinstance(asked, timedelta):
        seconds = asked.total_seconds()
    elif isinstance(asked, int | float | str) and not isinstance(asked, bool):
        seconds = float(asked)
    else:
        return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _described(on: tuple[type[BaseException], ...] | Callable[[Any], bool]) -> str:
    if not isinstance(on, tuple):
        return f"where {_shown(on)}"
    return "any" if Exception in on else ", ".join(map(_shown, on)) or "none"


def _shown(value: object) -> str:
    """Return classes and functions by name, and tuples of them as they are written in code."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))}{',' if len(value) == 1 else ''})"
    return str(getattr(value, "__qualname__", None) or repr(value))
