"""Reads a handler's steps and checks each, when the worker is built."""

from __future__ import annotations

import dis
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticUserError

from consumerkit.handlers.attributes import Attributes, in_short
from consumerkit.handlers.effects import Effects, PlainEffects
from consumerkit.handlers.event_type import resolved
from consumerkit.handlers.handler import BatchHandler
from consumerkit.handlers.step_checks import (
    bound_method,
    check_arguments,
    check_key,
    check_takes,
    may_run_steps,
    refuse_lost_steps,
    refuse_unfinished,
)
from consumerkit.handlers.steps import UNDO_RETRY, InDoubt, Step
from consumerkit.policies.retry import Retry

_NAME_CHARACTERS = 100
_BYTES = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class DeclaredStep(NamedTuple):
    """One step of a handler.

    Attributes:
        name: The name under which its result is kept.
        source: The `Step` that the class defines.
        deadline: Seconds that a call may take.
        in_doubt: What happens to a call in doubt, where there is no `asks`.
        call: The step's method, bound.
        asks: The method that asks the other side whether the call was done, bound; None where there
            is none.
        signature: What the method takes, without the handler and the key.
        result: Writes and reads the result.
        undoes: The method that undoes the step, bound; None where there is none.
        undo_retry: How often the undo is tried.
        undo_in_doubt: Whether the undo takes None as the result, where it is unknown whether the
            call was done.
        given: Writes and reads each argument, by the name of its parameter; empty where the step
            has no undo.
    """

    name: str
    source: object
    deadline: float
    in_doubt: InDoubt
    call: Callable[..., Any]
    asks: Callable[..., Any] | None
    signature: inspect.Signature
    result: TypeAdapter[Any]
    undoes: Callable[..., Any] | None = None
    undo_retry: Retry = UNDO_RETRY
    undo_in_doubt: bool = False
    given: Mapping[str, TypeAdapter[Any]] = {}

    @property
    def is_async(self) -> bool:
        """Whether the step's method is a coroutine function."""
        return inspect.iscoroutinefunction(self.call)

    @property
    def undo(self) -> str | None:
        """The undo as stored: "done", or "doubt" if it can settle a call in doubt; None where there is no undo."""
        if self.undoes is None:
            return None
        return "doubt" if self.undo_in_doubt or self.asks is not None else "done"


def declared_steps(attributes: Attributes, *, is_async: bool) -> dict[str, DeclaredStep]:
    """Return a handler's steps by their names.

    Raises:
        ConfigurationError: A step is declared wrongly, or `prepare` has no step to run.
    """
    handler: Any = attributes.handler
    refuse_lost_steps(attributes)
    found = {}
    for name, step in _steps(type(handler)):
        if isinstance(handler, BatchHandler):
            attributes.refuse(f"is a BatchHandler and has the step {name}; only a Handler has steps")
        if step.name != name:
            attributes.refuse(
                f"{name} is a step whose result would be kept under the name {step.name!r} of its function; "
                "give both one name"
            )
        found[name] = _declared(attributes, step, is_async=is_async)
    if not found and not isinstance(handler, BatchHandler) and getattr(handler, "prepare", None) is not None:
        attributes.refuse("defines prepare, and has no step to run in it; declare one with @step, or rename prepare")
    prepare = getattr(handler, "prepare", None)
    if found and not may_run_steps(handler.handle) and (prepare is None or not may_run_steps(prepare)):
        name = next(iter(found))
        attributes.refuse(
            f"has the step {name} and runs it nowhere; define prepare(self, event, effects), and run it there by "
            f"effects.run(self.{name}, ...)"
        )
    return found


def _steps(cls: type) -> Iterator[tuple[str, Step[Any, Any]]]:
    for name in dir(cls):
        found = inspect.getattr_static(cls, name)
        if isinstance(found, Step):
            yield name, found


def _declared(attributes: Attributes, step: Step[Any, Any], *, is_async: bool) -> DeclaredStep:
    name, handler = step.name, attributes.handler
    if len(name) > _NAME_CHARACTERS:
        attributes.refuse(f"step {in_short(name)}: its name has {len(name)} characters; give it at most 100")
    if step.said_in_doubt not in (None, *get_args(InDoubt)):
        attributes.refuse(
            f'step {name}: in_doubt={in_short(step.said_in_doubt)} is neither "retry" nor "dead-letter"; '
            f"to ask the other side, leave it out and write @{name}.confirm above the method that asks"
        )
    if step.said_in_doubt is not None and step.asks is not None:
        attributes.refuse(f"step {name}: in_doubt has no effect beside confirm; leave one of them out")
    if not _is_deadline(step.deadline):
        attributes.refuse(f"step {name}: deadline={in_short(step.deadline)} is not a number of seconds > 0")
    refuse_unfinished(attributes, step)
    _check_undo(attributes, step)
    asks, undoes = bound_method(handler, step.asks), bound_method(handler, step.undoes)
    for method, what in ((step.method, name), (asks, f"{name}.confirm"), (undoes, f"{name}.undo")):
        if method is not None and inspect.iscoroutinefunction(method) != is_async:
            kinds = ("`async def`", "plain `def`") if is_async else ("plain `def`", "`async def`")
            attributes.refuse(f"handle is {kinds[0]} and step {what} is {kinds[1]}; make both the same")
    check_key(attributes, step)
    check_arguments(attributes, step)
    for what, method in (("confirm", asks), ("undo", undoes)):
        if method is not None:
            check_takes(attributes, step, what, method)
    signature = inspect.signature(step.method)
    signature = signature.replace(parameters=list(signature.parameters.values())[2:])
    return DeclaredStep(
        name,
        step,
        float(step.deadline),
        step.in_doubt,
        step.method.__get__(handler),
        asks,
        signature,
        _result(attributes, step),
        undoes,
        step.undo_retry,
        step.undo_in_doubt,
        {} if step.undoes is None else _given(attributes, step, signature),
    )


def _check_undo(attributes: Attributes, step: Step[Any, Any]) -> None:
    name = step.name
    if step.undoes is None:
        return
    if step.undo_in_doubt and step.asks is not None:
        attributes.refuse(f"step {name}: undo(in_doubt=True) has no effect beside confirm; leave one of them out")
    if not isinstance(step.undo_in_doubt, bool):
        attributes.refuse(f"step {name}: undo(in_doubt={in_short(step.undo_in_doubt)}) is neither True nor False")
    if not isinstance(step.undo_retry, Retry):
        attributes.refuse(f"step {name}: undo(retry={in_short(step.undo_retry)}) is not a Retry")
    if step.undo_retry.in_place != 1 or step.undo_retry.on_result is not None:
        attributes.refuse(f"step {name}: the retry of its undo has in_place or on_result, which an undo has not")


def _given(attributes: Attributes, step: Step[Any, Any], signature: inspect.Signature) -> dict[str, TypeAdapter[Any]]:
    """Return the adapters that write and read a step's arguments, which its undo is called with later."""
    found = {}
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.annotation is (
            inspect.Parameter.empty
        ):
            attributes.refuse(
                f"step {step.name} has undo, which is called with the step's arguments; give {parameter.name!r} a name "
                "and a type of its own, in which it is kept"
            )
        try:
            kind = resolved(parameter.annotation, getattr(step.method, "__globals__", {}))
            if kind not in (Effects, PlainEffects):
                found[parameter.name] = _adapter(kind)
        except Exception as error:  # noqa: BLE001 - an annotation may be anything
            why = str(error).partition("\n")[0]
            attributes.refuse(
                f"step {step.name} has undo, and takes {parameter.name}: {in_short(parameter.annotation)}, which "
                f"cannot be kept as JSON: {why}"
            )
    return found


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind, config=_BYTES)
    except PydanticUserError:
        return TypeAdapter(kind)  # a model has its own configuration, and a second one is an error


def _result(attributes: Attributes, step: Step[Any, Any]) -> TypeAdapter[Any]:
    annotation = inspect.signature(step.method).return_annotation
    if annotation is inspect.Signature.empty:
        attributes.refuse(
            f"step {step.name} has no return annotation, which its result is kept by; annotate it, with -> None if "
            "it returns nothing"
        )
    try:
        return _adapter(resolved(annotation, getattr(step.method, "__globals__", {})))
    except Exception as error:  # noqa: BLE001 - an annotation may be anything
        why = str(error).partition("\n")[0]
        attributes.refuse(f"step {step.name} returns {in_short(annotation)}, which cannot be kept as JSON: {why}")


def runs_steps_inside(handle: Callable[..., Any]) -> bool:
    """Tell whether `handle` itself calls `context.run`, as far as its bytecode shows."""
    code = getattr(inspect.unwrap(getattr(handle, "__func__", handle)), "__code__", None)
    if code is None or code.co_argcount < 3:
        return False
    context, loaded = code.co_varnames[2], False
    for instruction in dis.get_instructions(code):
        if loaded and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and instruction.argval == "run":
            return True
        value = instruction.argval
        last = value[-1] if isinstance(value, tuple) and value else value
        loaded = instruction.opname.startswith("LOAD_FAST") and last == context
    return False


def _is_deadline(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
