"""Finds the event type that a handler class declares: the `X` of `Handler[X]`, also through generic bases."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typing_extensions import NoDefault, is_typeddict

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.handler import BatchHandler, Handler

MISSING: Final = object()
"""What `declared_event_type` returns where no base names the event type."""


def declared_event_type(handler_class: type) -> Any:
    """Return the event type of a handler class, or `MISSING`.

    A type variable takes its value from the subclass's arguments, else its default. A forward
    reference is looked up in the module of the class that contains it.

    Raises:
        ConfigurationError: A forward reference names nothing, or a type variable is left open.
    """
    found = _argument(handler_class)
    variables = [] if found is MISSING else _variables(found)
    defaults = {variable: getattr(variable, "__default__", NoDefault) for variable in variables}
    for variable, default in defaults.items():
        if default is NoDefault:
            raise ConfigurationError(f"its event type leaves the type variable {variable.__name__} open")
    return fill(found, defaults)


def admits_none(event_type: Any) -> bool:
    """Whether None, and so a tombstone, is an event of this type.

    Example:
        >>> admits_none(dict | None), admits_none(dict)
        (True, False)
    """
    if event_type in (None, NoneType, Any, object):
        return True
    origin = get_origin(event_type)
    if origin in (Union, UnionType):
        return any(map(admits_none, get_args(event_type)))
    if origin is Annotated:
        return admits_none(get_args(event_type)[0])
    # A `type X = ...` alias holds its value in `__value__`.
    return hasattr(event_type, "__value__") and admits_none(event_type.__value__)


def field_names(event_type: Any) -> frozenset[str] | None:
    """Return the names of the fields that events of this type have; None where an event may have any name.

    A union has the names of all its members. Properties, methods and class attributes count: a
    field may be computed.

    Example:
        >>> field_names(dict[str, int]) is None
        True
    """
    origin = get_origin(event_type)
    if origin in (Union, UnionType):
        members = [field_names(member) for member in get_args(event_type) if member is not NoneType]
        return None if None in members else frozenset().union(*(names for names in members if names is not None))
    if origin is Annotated:
        return field_names(get_args(event_type)[0])
    if hasattr(event_type, "__value__"):
        return field_names(event_type.__value__)
    return _names_in_class(origin or event_type)


def _names_in_class(cls: Any) -> frozenset[str] | None:
    if is_typeddict(cls):
        return frozenset(cls.__annotations__)
    if not isinstance(cls, type):
        return None
    if issubclass(cls, BaseModel):
        has_more = cls.model_config.get("extra") == "allow" or _has_own(cls, "__getattr__", BaseModel)
        return None if has_more else frozenset({*cls.model_fields, *_own_names(cls, BaseModel)})
    if dataclasses.is_dataclass(cls):
        has_more = any(_has_own(cls, method, object) for method in ("__getattr__", "__post_init__"))
        return (
            None if has_more else frozenset({*(one.name for one in dataclasses.fields(cls)), *_own_names(cls, object)})
        )
    return None


def _has_own(cls: type, method: str, base: type) -> bool:
    return getattr(cls, method, None) is not getattr(base, method, None)


def _own_names(cls: type, base: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")} - set(dir(base))


def resolved(annotation: Any, namespace: Mapping[str, Any]) -> Any:
    """Return an annotation with its strings and forward references resolved in `namespace`.

    Raises:
        NameError: `namespace` has no such name.
    """

    def holder() -> None: ...

    holder.__annotations__ = {"it": annotation}
    return get_type_hints(holder, globalns=dict(namespace), include_extras=True)["it"]


def _argument(cls: type) -> Any:
    """Return the event type that `cls` declares, in terms of its own type variables."""
    for base in cls.__dict__.get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        arguments = tuple(_resolved_in(cls, argument) for argument in get_args(base))
        if origin in (Handler, BatchHandler):
            return arguments[0] if arguments else MISSING
        if origin is Generic or not issubclass(origin, (Handler, BatchHandler)):
            continue
        inner = _argument(origin)
        if inner is not MISSING:
            return fill(inner, dict(zip(origin.__parameters__, arguments, strict=False)))
    return MISSING


def _resolved_in(cls: type, argument: Any) -> Any:
    module = sys.modules.get(cls.__module__)
    try:
        return resolved(argument, {**vars(module), cls.__name__: cls} if module else {})
    except NameError as error:
        raise ConfigurationError(
            f"its event type names {error.name!r}, which module {cls.__module__} does not have at the top level"
        ) from None


def _variables(tree: Any) -> list[Any]:
    """Return the type variables that `tree` leaves open; a generic class without arguments leaves none open."""
    if isinstance(tree, TypeVar):
        return [tree]
    # A parametrised pydantic model is a class, so `get_origin` does not find its arguments.
    parametrised = get_origin(tree) is not None or getattr(tree, "__pydantic_generic_metadata__", {}).get("origin")
    return _parameters(tree) if parametrised else []


def _parameters(tree: Any) -> list[Any]:
    generic = getattr(tree, "__pydantic_generic_metadata__", None)
    return list(generic["parameters"] if generic else getattr(tree, "__parameters__", ()))


def fill(tree: Any, values: Mapping[Any, Any]) -> Any:
    """Return a type with type variables in it replaced by their values."""
    if isinstance(tree, TypeVar):
        return values.get(tree, tree)
    # Pydantic does not distinguish `Envelope[T]` from `Envelope`: fill it only if `values` has its
    # T.
    parameters = _parameters(tree) if set(_parameters(tree)) & set(values) else []
    return tree[tuple(values.get(parameter, parameter) for parameter in parameters)] if parameters else tree
