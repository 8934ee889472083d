"""Finds the declared type of a field that a path names within an event type."""

from __future__ import annotations

import inspect
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from consumerkit.handlers.event_type import fill


def field_types(event_type: Any, path: str) -> list[Any]:
    """Return the declared types of the field at a dotted path: one for each member of a union that has it.

    The list is empty where the declaration does not say, as in a mapping of any values.

    Example:
        >>> field_types(dict[str, set[int]], "ids")
        [set[int]]
    """
    found = [event_type]
    for name in path.split("."):
        found = [member for each in found for member in _members(each, name)]
    return found


def _members(kind: Any, name: str) -> list[Any]:
    origin = get_origin(kind)
    if origin is Annotated:
        return _members(get_args(kind)[0], name)
    if origin in (Union, UnionType):
        return [found for one in get_args(kind) if one is not NoneType for found in _members(one, name)]
    for stands_for in ("__value__", "__supertype__"):  # `type X = ...` and NewType
        if hasattr(kind, stands_for):
            return _members(getattr(kind, stands_for), name)
    cls = origin or kind
    if not isinstance(cls, type):
        return []
    if hasattr(cls, "keys") and not hasattr(cls, "__total__"):
        return list(get_args(kind)[1:2])
    found = _declared(cls, name)
    variables = getattr(cls, "__parameters__", ()) if origin is not None else ()
    return [] if found is None else [fill(found, dict(zip(variables, get_args(kind), strict=False)))]


def _declared(cls: type, name: str) -> Any:
    if issubclass(cls, BaseModel):
        cls.model_rebuild(raise_errors=False)
        if (field := cls.model_fields.get(name)) is not None:
            return field.annotation
        if (computed := cls.model_computed_fields.get(name)) is not None:
            return computed.return_type
    try:
        attribute = inspect.getattr_static(cls, name, None)
        function = getattr(attribute, "fget", None) or getattr(attribute, "func", None)
        if function is not None:
            return get_type_hints(function, include_extras=True).get("return")
        return get_type_hints(cls, include_extras=True).get(name)
    except Exception:  # noqa: BLE001 - an annotation may be anything, and need not exist when the program runs
        return None
