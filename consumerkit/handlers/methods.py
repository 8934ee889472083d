"""Checks a handler's methods: which are overridden, their kinds, and their parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, get_args, get_origin

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from consumerkit.handlers.attributes import Attributes
from consumerkit.handlers.context import BatchContext, Context
from consumerkit.handlers.dead_lettered import DeadLetterContext
from consumerkit.handlers.event_type import resolved
from consumerkit.handlers.handler import BatchHandler, Handler

Method = Callable[..., Any]

_PARAMETERS = {
    "handle": ("event", "context"),
    "handle_batch": ("events", "context"),
    "prefetch": ("events", "session"),
    "session_setup": ("event", "session"),
    "on_duplicate": ("event", "result", "context"),
    "prepare": ("event", "effects"),
    "on_dead_letter": ("letter", "context"),
}


class Methods(NamedTuple):
    """A handler's methods, bound."""

    is_async: bool
    is_batch: bool
    prefetch: Method | None
    session_setup: Method | None
    on_duplicate: Method | None
    prepare: Method | None
    on_dead_letter: Method | None


def checked_methods(attributes: Attributes) -> Methods:
    """Return the methods of a handler.

    Raises:
        ConfigurationError: A method is missing, is of another kind than `handle`, or takes other
            parameters than consumerkit passes.
    """
    handler = attributes.handler
    is_batch = isinstance(handler, BatchHandler)
    if is_batch and isinstance(handler, Handler):
        attributes.refuse("is both a Handler and a BatchHandler; make two handlers of it")
    main = _main_method(attributes, "handle_batch" if is_batch else "handle", "handle" if is_batch else "handle_batch")
    is_async = _is_async(attributes, main)
    _check_context(attributes, main, is_async=is_async, kind=BatchContext if is_batch else Context)
    return Methods(
        is_async,
        is_batch,
        *(_optional_method(attributes, name, main, is_async=is_async) for name in handler.OPTIONAL_METHODS),
    )


def method_of(handler: object, name: str) -> Any:
    """Return a handler's method in the form that consumerkit calls, or None where the handler has none.

    A `functools.partial` in a class body is called without the handler, in every version of Python.
    Python 3.13 warns when it is read as an attribute, since a later version will pass the handler
    first.
    """
    found = inspect.getattr_static(handler, name, None)
    return found if isinstance(found, functools.partial) else getattr(handler, name, None)


def _main_method(attributes: Attributes, name: str, other: str) -> str:
    handler = attributes.handler
    base = BatchHandler if name == "handle_batch" else Handler
    if method_of(handler, other) is not None:
        way_out = "Handler" if other == "handle" else "BatchHandler"
        attributes.refuse(f"is a {base.__name__} and defines {other}; define {name}, or make it a {way_out}")
    method = method_of(handler, name)
    if getattr(method, "__func__", None) is vars(base)[name]:
        attributes.refuse(f"{name} is missing; define {_signature(name)}")
    _check_callable(attributes, name)
    return name


def _optional_method(attributes: Attributes, name: str, main: str, *, is_async: bool) -> Method | None:
    method: Method | None = method_of(attributes.handler, name)
    if method is None:
        return None
    if main == "handle_batch" and name == "on_duplicate":
        attributes.refuse(f"is a BatchHandler and defines {name}; only a Handler has it")
    if main == "handle_batch" and name == "prepare":
        attributes.refuse(f"is a BatchHandler and defines {name}; only a Handler has steps")
    if main == "handle_batch" and name != "on_dead_letter":
        attributes.refuse(f"is a BatchHandler and defines {name}; do that work in handle_batch")
    _check_callable(attributes, name)
    if _is_async(attributes, name) != is_async:
        kinds = ("`async def`", "plain `def`") if is_async else ("plain `def`", "`async def`")
        attributes.refuse(f"{main} is {kinds[0]} and {name} is {kinds[1]}; make both the same")
    if name == "on_duplicate":
        _check_context(attributes, name, is_async=is_async, kind=Context)
    if name == "on_dead_letter":
        _check_context(attributes, name, is_async=is_async, kind=DeadLetterContext)
    return method


def _check_callable(attributes: Attributes, name: str) -> None:
    method = method_of(attributes.handler, name)
    if not callable(method):
        attributes.refuse_value(name, f"is not a method; define {_signature(name)}")
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        attributes.refuse(f"{name} is a generator, so it would never run; take out `yield`")
    try:
        inspect.signature(method).bind(*_PARAMETERS[name])
    except TypeError:
        attributes.refuse(f"{name} takes other parameters than consumerkit passes; define {_signature(name)}")


def _is_async(attributes: Attributes, name: str) -> bool:
    method = method_of(attributes.handler, name)
    # `iscoroutinefunction` is false for an object with `async def __call__`.
    if inspect.iscoroutinefunction(method) or inspect.iscoroutinefunction(vars(type(method)).get("__call__")):
        return True
    if inspect.iscoroutinefunction(_innermost(method)):
        # In a thread it would return a coroutine that is never awaited, and the effect would be
        # lost.
        attributes.refuse(f"{name} is a plain function around a coroutine function; make the decorator's `async def`")
    return False


def _innermost(method: Method) -> Method:
    """Return the function inside partials, bound methods and decorators that use `functools.wraps`."""
    while True:
        if isinstance(method, functools.partial):
            method = method.func
        elif inspect.ismethod(method):
            method = method.__func__
        elif hasattr(method, "__wrapped__"):
            method = method.__wrapped__
        else:
            return method


def _check_context(attributes: Attributes, name: str, *, is_async: bool, kind: type) -> None:
    annotation = _context_annotation(method_of(attributes.handler, name), _PARAMETERS[name].index("context"))
    annotated = get_origin(annotation) or annotation
    if annotated not in (Context, BatchContext, DeadLetterContext):
        return
    if annotated is not kind:
        attributes.refuse(f"{name} is annotated with {annotated.__name__} and is given a {kind.__name__}")
    session = (*get_args(annotation), AsyncSession)[0]
    if not isinstance(session, type):
        return
    if is_async and issubclass(session, Session):
        attributes.refuse(
            f"{name} is `async def` and its context holds a Session; annotate {kind.__name__}, or make it plain `def`"
        )
    if not is_async and issubclass(session, AsyncSession):
        attributes.refuse(
            f"{name} is plain `def` and its context holds an AsyncSession; annotate {kind.__name__}[Session], "
            "or make it `async def`"
        )


def _context_annotation(method: Method, at: int) -> Any:
    """Return the annotation of the parameter at an index; None if there is none or it cannot be resolved."""
    try:
        parameter = list(inspect.signature(method).parameters.values())[at]
        return resolved(parameter.annotation, getattr(_innermost(method), "__globals__", {}))
    except Exception:  # noqa: BLE001 - an annotation may be anything, and need not exist when the program runs
        return None


def _signature(name: str) -> str:
    return f"{name}(self, {', '.join(_PARAMETERS[name])})"
