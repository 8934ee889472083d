"""Steps: methods of a handler with an effect outside the database, each done once per message."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from hashlib import blake2b
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    overload,
)
from uuid import UUID

from consumerkit.errors import AlreadyDone, ConfigurationError
from consumerkit.policies.retry import Retry
from consumerkit.policies.wait import exponential

P = ParamSpec("P")
T = TypeVar("T")
InDoubt = Literal["retry", "dead-letter"]
_Confirm: TypeAlias = Callable[Concatenate[Any, "IdempotencyKey", P], Any]
_Undo: TypeAlias = Callable[Concatenate[Any, "IdempotencyKey", T, P], Any]

UNDO_RETRY: Final = Retry(attempts=10, wait=exponential(1, max=600))
"""How often the undo of a step is tried by default."""
DEADLINE: Final = 60.0
"""Seconds that a step may take by default."""


class IdempotencyKey(str):
    """Lets the other side recognise a repetition: each call of a step for the same message has the same key.

    It has the form of a UUID, made from the handler's name, the message ID, the step's name and its generation.

    Example:
        >>> IdempotencyKey.of("pay", b"0" * 16, "charge", 1)
        '4faaba97-959c-5b57-ab79-0e0830f7a81c'
    """

    __slots__ = ()

    @classmethod
    def of(cls, handler: str, digest: bytes, step: str, generation: int) -> Self:
        """Return the key of one message's step."""
        seed = b"\x00".join((handler.encode(), digest.hex().encode(), step.encode(), str(generation).encode()))
        return cls(UUID(bytes=blake2b(seed, digest_size=16, person=b"step").digest(), version=5))


class Step(Generic[P, T]):
    """A method declared with `@step`; `consumerkit.step` makes it.

    Attributes:
        name: The method's name, under which its result is kept.
        method: The function, as the class defines it.
        in_doubt: What happens to a call whose outcome is unknown.
        deadline: Seconds after which a call is given up, or is in doubt if its process is gone.
        asks: The function that asks the other side whether the call was done; or None.
        undoes: The function that undoes the step; None where there is none.
        undo_retry: How often the undo is tried.
        undo_in_doubt: Whether the undo takes None where it is unknown whether the call was done.
        unfinished: Which of `confirm` and `undo` were called and decorate no method.
    """

    def __init__(self, method: Callable[..., Any], in_doubt: InDoubt | None, deadline: float) -> None:
        self.method = method
        self.name: str = getattr(method, "__name__", "")
        self.deadline = deadline
        self.asks: Callable[..., Any] | None = None
        self.undoes: Callable[..., Any] | None = None
        self.undo_retry = UNDO_RETRY
        self.undo_in_doubt = False
        self.said_in_doubt = in_doubt
        self.unfinished: set[str] = set()
        self.__doc__ = method.__doc__

    @property
    def in_doubt(self) -> InDoubt:
        """What happens to a call in doubt, where the step has no `confirm`."""
        return self.said_in_doubt or "retry"

    @overload
    def confirm(self, method: _Confirm[P], /) -> _Confirm[P]: ...

    @overload
    def confirm(self) -> Callable[[_Confirm[P]], _Confirm[P]]: ...

    def confirm(self, method: Any = None) -> Any:
        """Declare the method that asks the other side whether a call in doubt was done.

        It takes what the step takes, and returns `AlreadyDone(result)`, or None where the step was
        not done. It is called before the step is called again: after a call without a known
        outcome, and after a call that raised an error.

        Example:
            @charge.confirm
            async def find_charge(self, key: IdempotencyKey, event: PaymentCaptured) -> AlreadyDone | None:
                found = await self.provider.find(key)
                return None if found is None else AlreadyDone(found)
        """
        if method is None:
            self.unfinished.add("confirm")
            return self.confirm
        self._check_method("confirm", method)
        if self.asks is not None:
            raise ConfigurationError(f"step {self.name!r} has two methods for confirm; give it one")
        self.asks = method
        return method

    @overload
    def undo(self, method: _Undo[T, P], /) -> _Undo[T, P]: ...

    @overload
    def undo(self, *, retry: Retry | None = None, in_doubt: bool = False) -> Callable[[_Undo[T, P]], _Undo[T, P]]: ...

    def undo(self, method: Any = None, *, retry: Retry | None = None, in_doubt: bool = False) -> Any:
        """Declare the method that undoes this step when its message becomes a dead letter.

        It takes the key of the step's call, the step's result, and then what the step takes. The
        undos of a message run in the reverse order of its steps, each with the step's own deadline.
        After a crash they run again: the other side recognises a repetition by the key.

        Args:
            method: The method.
            retry: How often the undo is tried; ten times within about half an hour by default. An
                undo that fails for good becomes a dead letter with the reason `undo_failed`.
            in_doubt: Whether the undo can undo a call that may not have been done; the step's
                result is then None. Leave it out where the step has `confirm`, which is called
                first.

        Example:
            @charge.undo
            async def refund(self, key: IdempotencyKey, done: Charge, event: PaymentCaptured) -> None:
                await self.provider.refund(done.number, idempotency_key=key)
        """
        if method is None:
            self.unfinished.add("undo")
            return lambda given: self._undone_by(given, retry, in_doubt=in_doubt)
        return self._undone_by(method, retry, in_doubt=in_doubt)

    def _undone_by(self, method: _Undo[T, P], retry: Retry | None, *, in_doubt: bool) -> _Undo[T, P]:
        self._check_method("undo", method)
        if self.undoes is not None:
            raise ConfigurationError(f"step {self.name!r} has two methods for undo; give it one")
        self.undoes, self.undo_in_doubt = method, in_doubt
        self.undo_retry = UNDO_RETRY if retry is None else retry
        return method

    def _check_method(self, what: str, method: Any) -> None:
        self.unfinished.discard(what)
        if not _is_method(method):
            raise ConfigurationError(
                f"step {self.name!r}: {what}={_shown(method)} is not a method; write @{self.name}.{what} above the "
                "method itself"
            )
        if method is not self.method and method.__qualname__ == getattr(self.method, "__qualname__", ""):
            raise ConfigurationError(
                f"step {self.name!r}: the method for {what} has the step's own name and replaces the step; give it "
                "another name"
            )

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> BoundStep[P, T]: ...

    def __get__(self, instance: object | None, owner: type) -> Self | BoundStep[P, T]:
        return self if instance is None else BoundStep(self, instance)


class BoundStep(Generic[P, T]):
    """A step of one handler, for `effects.run`, `context.run` and `context.done`; not called directly."""

    __slots__ = ("handler", "step")

    def __init__(self, step: Step[P, T], handler: object) -> None:
        self.step = step
        self.handler = handler

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundStep) and other.step is self.step and other.handler is self.handler

    def __hash__(self) -> int:
        return hash((id(self.step), id(self.handler)))

    def __repr__(self) -> str:
        return f"<step {type(self.handler).__name__}.{self.step.name}>"

    if not TYPE_CHECKING:  # type checkers report a direct call

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Refuse a direct call, whose result would not be kept."""
            name = self.step.name
            raise TypeError(
                f"step {name!r} is not called directly, since its result would not be kept; run it by "
                f"effects.run(self.{name}, ...) in prepare, or by context.run(self.{name}, ...) in handle"
            )


class _Decorator(Protocol):
    @overload
    def __call__(self, method: Callable[Concatenate[Any, IdempotencyKey, P], Coroutine[Any, Any, T]]) -> Step[P, T]: ...

    @overload
    def __call__(self, method: Callable[Concatenate[Any, IdempotencyKey, P], T]) -> Step[P, T]: ...


@overload
def step(method: Callable[Concatenate[Any, IdempotencyKey, P], Coroutine[Any, Any, T]], /) -> Step[P, T]: ...


@overload
def step(method: Callable[Concatenate[Any, IdempotencyKey, P], T], /) -> Step[P, T]: ...


@overload
def step(*, in_doubt: InDoubt | None = None, deadline: float = DEADLINE) -> _Decorator: ...


def step(method: Any = None, /, *, in_doubt: InDoubt | None = None, deadline: float = DEADLINE) -> Any:
    """Declare a method as a step: its effect is outside the database, and it is done once per message.

    The method takes an `IdempotencyKey` and then the arguments of the run. Its result is kept as
    JSON of the annotated type. Every later run of the step for this message returns that result
    without a call. Run it with `effects.run(self.charge, event)` in `prepare`, or with
    `context.run(self.charge, event)` in `handle`. A step runs once per message: a run with other
    arguments fails with `StepChanged`.

    Where a call has begun and its result was not kept, as after a crash, it is unknown whether the
    call was done. Until the call's deadline the message is parked, without an attempt; after the
    deadline the call is in doubt.

    Args:
        method: The method.
        in_doubt: "retry" calls the step again with the same key, by which the other side must
            recognise a repetition; "dead-letter" dead-letters the message. "retry" by default.
            Leave it out where the step has `confirm`.
        deadline: Seconds that one call may take. A call of a coroutine is then ended;
            `effects.alive()` extends the deadline.

    Example:
        >>> class Charges:
        ...     @step(deadline=20)
        ...     async def charge(self, key: IdempotencyKey, amount: int) -> str: ...
        >>> Charges.charge.name, Charges.charge.in_doubt
        ('charge', 'retry')
    """
    body = sys._getframe(1).f_locals  # noqa: SLF001 - the class body, in which two steps may have one name
    made = partial(_step, in_doubt=in_doubt, deadline=deadline, body=body)
    return made if method is None else made(method)


def _step(method: Any, in_doubt: InDoubt | None, deadline: float, body: Mapping[str, Any]) -> Step[..., Any]:
    """Return a step that is declared in a class body with these names."""
    if not _is_method(method):
        raise ConfigurationError(
            f"step({_shown(method)}) is not given a method; write @step, or @step(deadline=...), above the method"
        )
    name = getattr(method, "__name__", "")
    if isinstance(earlier := body.get(name), Step) and "__qualname__" in body and earlier.method is not method:
        raise ConfigurationError(
            f"step {name!r} is declared twice in {body['__qualname__']}; give each a name of its own"
        )
    return Step(method, in_doubt, deadline)


def _is_method(value: object) -> bool:
    return (
        callable(value) and hasattr(value, "__qualname__") and not isinstance(value, Step | staticmethod | classmethod)
    )


def _shown(value: object) -> str:
    return (
        f"a {type(value).__name__.lower()}"
        if isinstance(value, Step | staticmethod | classmethod)
        else repr(value)[:80]
    )


def outcome(answer: object, step: str) -> AlreadyDone | None:
    """Return the answer of a `confirm` method.

    Raises:
        TypeError: The answer is neither None nor an `AlreadyDone`.
    """
    if answer is None or isinstance(answer, AlreadyDone):
        return answer
    raise TypeError(f"step {step!r}: its confirm returned {type(answer).__name__}; return AlreadyDone(result), or None")
