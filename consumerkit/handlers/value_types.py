"""Tells which types have bytes that are the same in every process, complete, and made without a side effect."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterator, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import Secret, SecretBytes, SecretStr

SET: Final = "is a set, whose order differs from process to process"
SECRET: Final = "is a secret, and a message ID is stored and shown"  # noqa: S105
ONCE: Final = "can be read only once, and the handler reads it"
SERIALIZER: Final = "has a serialiser of its own, so its JSON need not be its value"
COMPUTED: Final = "has a computed field, which need not be the same each time"
EXCLUDED: Final = "leaves out a field (`exclude`) of its JSON"
OWN_TEXT: Final = "writes itself in a way of its own, so its text need not be its value"

_WRITES_TEXT: Final = ("__str__", "__repr__", "isoformat")
_PYDANTIC: Final = frozenset({"pydantic", "pydantic_core", "pydantic_extra_types", "operator"})
"""Modules whose serialisers lose nothing; pydantic serialises a pattern with an `operator.attrgetter`."""
_EVENTS: Final = frozenset({"model", "dataclass"})


@cache
def secrets() -> tuple[type[SecretStr], type[SecretBytes], type[Secret[Any]]]:
    """Return pydantic's secret types, imported here since few programs that import consumerkit need them."""
    from pydantic import Secret, SecretBytes, SecretStr

    return SecretStr, SecretBytes, Secret


def has_own_text(cls: type, base: type) -> bool:
    """Tell whether a subclass of a builtin type has another text than that type.

    Example:
        >>> has_own_text(bool, bool), has_own_text(type("Masked", (str,), {"__str__": lambda _: "***"}), str)
        (False, True)
    """
    return cls is not base and any(getattr(cls, name, None) is not getattr(base, name, None) for name in _WRITES_TEXT)


def id_problem(annotation: Any) -> str | None:
    """Return why values of a type cannot be a message ID; None where they can, or where only a value can tell."""
    return _problem(annotation, for_id=True)


def fingerprint_problem(annotation: Any) -> str | None:
    """Return why values of a type cannot be part of a fingerprint; None as in `id_problem`."""
    return _problem(annotation, for_id=False)


@lru_cache(maxsize=1024)
def class_problem(cls: type) -> str | None:
    """Return why no object of a model or dataclass can be a message ID; None where only its values can tell."""
    return _problem(cls, for_id=True)


def _problem(annotation: Any, *, for_id: bool) -> str | None:
    # A field's own annotations do not count: consumerkit reads the field and does not serialise it.
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if _mentions(annotation, _is_read_once):
        return ONCE
    if for_id and isinstance(annotation, type) and (base := _text_base(annotation)) is not None:
        return OWN_TEXT if has_own_text(annotation, base) else None
    if for_id and _mentions(annotation, _is_secret):
        return SECRET
    from pydantic import TypeAdapter

    try:
        return _found(TypeAdapter(annotation).core_schema, inside=False, for_id=for_id)
    except Exception:  # noqa: BLE001 - pydantic does not know the type, or not yet; the values are checked instead
        return None


def _text_base(cls: type) -> type | None:
    return next((base for base in (str, int, float) if issubclass(cls, base) and not hasattr(cls, "__members__")), None)


def _mentions(annotation: Any, is_meant: Callable[[type], bool]) -> bool:
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type) and is_meant(origin):
        return True
    return any(_mentions(argument, is_meant) for argument in get_args(annotation) if argument is not annotation)


def _is_read_once(cls: type) -> bool:
    return issubclass(cls, Iterator | AsyncIterable)


def _is_secret(cls: type) -> bool:
    return issubclass(cls, secrets())


def _found(schema: Any, *, inside: bool, for_id: bool) -> str | None:
    """Search pydantic's schema of a type for a problem; serialisers count only `inside` a model or dataclass."""
    if isinstance(schema, list | tuple):
        parts: Any = schema
    elif isinstance(schema, Mapping):
        kind = schema.get("type")
        if (problem := _at(schema, kind, inside=inside, for_id=for_id)) is not None:
            return problem
        inside = inside or kind in _EVENTS
        parts = [part for name, part in schema.items() if name not in ("serialization", "metadata", "config")]
    else:
        return None
    for part in parts:
        if (problem := _found(part, inside=inside, for_id=for_id)) is not None:
            return problem
    return None


def _at(schema: Mapping[str, Any], kind: object, *, inside: bool, for_id: bool) -> str | None:
    if kind == "generator" or not for_id:
        return ONCE if kind == "generator" else None
    found = {
        SET: kind in ("set", "frozenset"),
        SECRET: kind == "is-instance" and isinstance(schema.get("cls"), type) and _is_secret(schema["cls"]),
        COMPUTED: schema.get("computed_fields"),
        EXCLUDED: schema.get("serialization_exclude") or schema.get("serialization_exclude_if"),
    }
    problem = next((text for text, holds in found.items() if holds), None)
    if problem is None and (inside or kind in _EVENTS):
        return _serializer_problem(schema.get("serialization"))
    return problem


def _serializer_problem(serialization: Any) -> str | None:
    function = serialization.get("function") if isinstance(serialization, Mapping) else None
    if function is None:
        return None
    made_by = getattr(getattr(function, "func", function), "__module__", None) or type(function).__module__
    if made_by.partition(".")[0] in _PYDANTIC:
        secret = "secret" in getattr(function, "__name__", "")
        return SECRET if secret else None
    return SERIALIZER
