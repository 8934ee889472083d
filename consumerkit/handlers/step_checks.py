"""Checks the methods of a handler's steps: `confirm` and `undo` are called long after the worker is built."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from typing import Any

from consumerkit.handlers.attributes import Attributes, in_short
from consumerkit.handlers.event_type import resolved
from consumerkit.handlers.steps import IdempotencyKey, Step
from consumerkit.handlers.value_types import SECRET, id_problem

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def bound_method(handler: object, method: Callable[..., Any] | None) -> Any:
    """Return a method for `confirm` or `undo`, bound; a subclass may override it by its name."""
    if method is None:
        return None
    name = getattr(method, "__name__", "")
    if any(vars(cls).get(name) is method for cls in type(handler).__mro__):
        return getattr(handler, name)
    return method.__get__(handler)


def refuse_lost_steps(attributes: Attributes) -> None:
    """Refuse a step that the handler would not have."""
    handler = attributes.handler
    for name, value in vars(handler).items():
        if isinstance(value, Step):
            attributes.refuse(f"{name} is a step of the instance; declare it in the class, with @step")
    for cls in type(handler).__mro__:
        for name, value in vars(cls).items():
            if isinstance(value, staticmethod | classmethod) and isinstance(value.__func__, Step):
                attributes.refuse(
                    f"step {name} is a {type(value).__name__}; take that away, since a step takes the handler"
                )
            final = inspect.getattr_static(type(handler), name)
            if isinstance(value, Step) and final is not None and not isinstance(final, Step):
                attributes.refuse(
                    f"{name} overrides step {cls.__name__}.{name} and is no step; decorate it with @step, or rename it"
                )


def refuse_unfinished(attributes: Attributes, step: Step[Any, Any]) -> None:
    """Refuse `undo(...)` and `confirm()` without a method: the step would have neither."""
    for what in sorted(step.unfinished):
        attributes.refuse(f"step {step.name}: {what}(...) decorates no method; write @{step.name}.{what} above one")


def check_key(attributes: Attributes, step: Step[Any, Any]) -> None:
    """Refuse a step whose first parameter is not the key, as far as its annotation shows."""
    parameters = list(inspect.signature(step.method).parameters.values())
    name = step.name
    if len(parameters) < 2 or any(one.kind not in _POSITIONAL for one in parameters[:2]):
        attributes.refuse(f"step {name} takes no key; define {name}(self, key, ...): the key is the first argument")
    first = parameters[1]
    try:
        kind = resolved(first.annotation, getattr(step.method, "__globals__", {}))
    except Exception:  # noqa: BLE001 - an annotation may be anything, and this one is not needed
        return
    if kind not in (inspect.Parameter.empty, Any, object, str, IdempotencyKey):
        attributes.refuse(
            f"step {name} takes {first.name}: {in_short(kind)} first; the key comes before it: define {name}(self, "
            "key: IdempotencyKey, ...)"
        )


def check_arguments(attributes: Attributes, step: Step[Any, Any]) -> None:
    """Refuse a step that takes what cannot be compared with a later call's, as far as its annotations show."""
    for parameter in list(inspect.signature(step.method).parameters.values())[2:]:
        try:
            problem = id_problem(resolved(parameter.annotation, getattr(step.method, "__globals__", {})))
        except Exception:  # noqa: BLE001, S112 - an annotation may be anything; the call checks the value
            continue
        if problem not in (None, SECRET):
            attributes.refuse(
                f"step {step.name} takes {parameter.name}, which {problem}: it cannot be compared with a later call's; "
                "give the step plain values"
            )


def check_takes(attributes: Attributes, step: Step[Any, Any], what: str, method: Callable[..., Any]) -> None:
    """Refuse a method for `confirm` or `undo` that does not take what it is called with."""
    given = list(inspect.signature(step.method).parameters.values())[2:]
    signature = inspect.signature(method)
    before = ["key"] if what == "confirm" else ["key", "done"]
    positional = [one.name for one in given if one.kind in _POSITIONAL]
    keywords = {one.name: None for one in given if one.kind is one.KEYWORD_ONLY}
    wanted = ", ".join(["self", *before, *(str(one).partition(":")[0].partition("=")[0] for one in given)])
    try:
        signature.bind(*before, *positional, **keywords)
    except TypeError as error:
        attributes.refuse(f"step {step.name}: its {what} cannot be called: {error}; define it with ({wanted})")
    taken = [one.name for one in signature.parameters.values() if one.kind in _POSITIONAL]
    for at, name in enumerate(taken):
        if name in positional and positional.index(name) + len(before) != at:
            attributes.refuse(
                f"step {step.name}: its {what} takes {name!r} in another place than consumerkit passes it; define it "
                f"with ({wanted})"
            )


def may_run_steps(handle: Callable[..., Any]) -> bool:
    """Tell whether `handle` may run a step: it calls `context.run`, or gives its context to other code."""
    code = getattr(inspect.unwrap(getattr(handle, "__func__", handle)), "__code__", None)
    if code is None or code.co_argcount < 3:
        return True
    context, loaded = code.co_varnames[2], False
    if context in code.co_cellvars:
        return True
    for instruction in dis.get_instructions(code):
        if loaded and (instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD") or instruction.argval == "run"):
            return True
        value = instruction.argval
        names = value if isinstance(value, tuple) else (value,)
        reads = instruction.opname.startswith("LOAD_FAST")
        if reads and context in names[:-1]:
            return True
        loaded = reads and names[-1] == context
    return False
