"""Steps: methods of a handler with an effect outside the database, each done once per message."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from hashlib import blake2b
from typing import Any, Concatenate, Final, Generic, Literal, ParamSpec, Protocol, Self, TypeAlias, TypeVar, overload
from uuid import UUID

from consumerkit.errors import AlreadyDone, ConfigurationError
from consumerkit.policies.retry import Retry
from consumerkit.policies.wait import exponential

P = ParamSpec("P")
T = TypeVar("T")
InDoubt = Literal["retry", "dead-letter"]
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
        undo_in_doubt: Whether the undo takes None as the result, where it is unknown whether the
            call was done.
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
        self.__doc__ = method.__doc__

    @property
    def in_doubt(self) -> InDoubt:
        """What happens to a call in doubt, where the step has no `confirm`."""
        return self.said_in_doubt or "retry"

    def confirm(
        self, method: Callable[Concatenate[Any, IdempotencyKey, P], Any]
    ) -> Callable[Concatenate[Any, IdempotencyKey, P], Any]:
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
            return lambda given: self._undone_by(given, retry, in_doubt=in_doubt)
        return self._undone_by(method, retry, in_doubt=in_doubt)

    def _undone_by(self, method: _Undo[T, P], retry: Retry | None, *, in_doubt: bool) -> _Undo[T, P]:
        if self.undoes is not None:
            raise ConfigurationError(f"step {self.name!r} has two methods for undo; give it one")
        self.undoes, self.undo_in_doubt = method, in_doubt
        self.undo_retry = UNDO_RETRY if retry is None else retry
        return method

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
    if method is None:
        return lambda given: Step(given, in_doubt, deadline)
    return Step(method, in_doubt, deadline)


class StepCalls(Protocol):
    """Runs the steps of one message."""

    def run(self, step: BoundStep[..., Any], args: Sequence[Any], kwargs: dict[str, Any], *, inside: bool) -> Any:
        """Return the result or its coroutine; `inside` tells whether it runs within the message's transaction."""

    def done(self, step: BoundStep[..., Any]) -> Any:
        """Return the result of a step that is done."""

    def alive(self) -> Any:
        """Extend the deadline of the running step, or return the coroutine that does."""


class _Effects:
    """Runs the steps of one message; `prepare` gets it."""

    __slots__ = ("_calls", "message_id")

    def __init__(self, calls: StepCalls, message_id: str) -> None:
        self._calls = calls
        self.message_id = message_id


class Effects(_Effects):
    """Runs the steps of one message before its transaction; a coroutine `prepare` gets it.

    `prepare` may pass it to a step, where it does not count as an argument.

    Attributes:
        message_id: The message ID as text for people.
    """

    __slots__ = ()

    async def run(self, step: BoundStep[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the step's result, from a new call or from an earlier one.

        Raises:
            StepUnderWay: An earlier call may still be under way elsewhere: the message is parked
                until the call's deadline, without an attempt.
            StepInDoubt: It is unknown whether a call was done, and the step says "dead-letter".
            StepChanged: The step was run for this message with other arguments.
            Exception: The step's own error; it meets the handler's `retry`.
        """
        result: T = await self._calls.run(step, args, kwargs, inside=False)
        return result

    async def alive(self) -> None:
        """Extend the deadline of the running step: it counts from now.

        Raises:
            StepUnderWay: The deadline has passed, and another process has taken the step over.
        """
        await self._calls.alive()


class PlainEffects(_Effects):
    """As `Effects`, for a plain `prepare`, which runs in a thread."""

    __slots__ = ()

    def run(self, step: BoundStep[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the step's result; see `Effects.run`."""
        result: T = self._calls.run(step, args, kwargs, inside=False)
        return result

    def alive(self) -> None:
        """Extend the deadline of the running step; see `Effects.alive`."""
        self._calls.alive()


def outcome(answer: object, step: str) -> AlreadyDone | None:
    """Return the answer of a `confirm` method.

    Raises:
        TypeError: The answer is neither None nor an `AlreadyDone`.
    """
    if answer is None or isinstance(answer, AlreadyDone):
        return answer
    raise TypeError(f"step {step!r}: its confirm returned {type(answer).__name__}; return AlreadyDone(result), or None")


def is_deadline(value: object) -> bool:
    """Tell whether a value is a number of seconds above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
