"""Read the steps of a handler, each checked when the worker is built."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticUserError

from consumerkit.handlers.attributes import Attributes, in_short
from consumerkit.handlers.event_type import resolved
from consumerkit.handlers.handler import BatchHandler
from consumerkit.handlers.steps import InDoubt, Step, is_deadline

_NAME_CHARACTERS = 100
_BYTES = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class DeclaredStep(NamedTuple):
    """One step of a handler.

    Attributes:
        name: Under which its result is kept.
        source: What the class defines.
        deadline: Seconds that a call may take.
        in_doubt: What becomes of a call in doubt, where nothing can be asked.
        call: Its method, bound.
        asks: The method that asks the other side, bound; None where there is none.
        signature: What the method takes, without the handler and the key.
        result: Writes and reads what it returns.
    """

    name: str
    source: object
    deadline: float
    in_doubt: InDoubt
    call: Callable[..., Any]
    asks: Callable[..., Any] | None
    signature: inspect.Signature
    result: TypeAdapter[Any]


def declared_steps(attributes: Attributes, *, is_async: bool) -> dict[str, DeclaredStep]:
    """Return a handler's steps by their names.

    Raises:
        ConfigurationError: One is declared wrongly, or `prepare` has nothing to run.
    """
    handler: Any = attributes.handler
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
        attributes.refuse("defines prepare, and no step that it could run; declare one with @step, or rename prepare")
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
        attributes.refuse(f'step {name}: in_doubt={in_short(step.said_in_doubt)} is neither "retry" nor "dead-letter"')
    if step.said_in_doubt is not None and step.asks is not None:
        attributes.refuse(
            f"step {name}: in_doubt says nothing where confirm asks the other side; leave one of them out"
        )
    if not is_deadline(step.deadline):
        attributes.refuse(f"step {name}: deadline={in_short(step.deadline)} is not a number of seconds > 0")
    for method, what in ((step.method, name), (step.asks, f"{name}.confirm")):
        if method is not None and inspect.iscoroutinefunction(method) != is_async:
            kinds = ("`async def`", "plain `def`") if is_async else ("plain `def`", "`async def`")
            attributes.refuse(f"handle is {kinds[0]} and step {what} is {kinds[1]}; make both the same")
    signature = _signature(attributes, step)
    return DeclaredStep(
        name,
        step,
        float(step.deadline),
        step.in_doubt,
        step.method.__get__(handler),
        None if step.asks is None else step.asks.__get__(handler),
        signature,
        _result(attributes, step),
    )


def _signature(attributes: Attributes, step: Step[Any, Any]) -> inspect.Signature:
    signature = inspect.signature(step.method)
    parameters = list(signature.parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(parameters) < 2 or any(one.kind not in positional for one in parameters[:2]):
        attributes.refuse(
            f"step {step.name} takes no key; define {step.name}(self, key, ...): the key is the first that it is given"
        )
    if step.asks is not None and len(inspect.signature(step.asks).parameters) != len(parameters):
        attributes.refuse(
            f"step {step.name}: its confirm takes other parameters than the step; define it with the same"
        )
    return signature.replace(parameters=parameters[2:])


def _result(attributes: Attributes, step: Step[Any, Any]) -> TypeAdapter[Any]:
    annotation = inspect.signature(step.method).return_annotation
    if annotation is inspect.Signature.empty:
        attributes.refuse(
            f"step {step.name} does not say what it returns, which is kept as JSON of that type; annotate it: -> None, "
            "where it returns nothing"
        )
    try:
        kind = resolved(annotation, getattr(step.method, "__globals__", {}))
        try:
            return TypeAdapter(kind, config=_BYTES)
        except PydanticUserError:
            return TypeAdapter(kind)  # a model has a configuration of its own
    except Exception as error:  # noqa: BLE001 - an annotation may be anything
        why = str(error).partition("\n")[0]
        attributes.refuse(f"step {step.name} returns {in_short(annotation)}, which cannot be kept as JSON: {why}")


def runs_steps_inside(handle: Callable[..., Any]) -> bool:
    """Tell whether `handle` itself calls `context.run`, as far as its code shows it."""
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
