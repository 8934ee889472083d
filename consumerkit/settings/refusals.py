"""Errors about settings: one line that names the variable or the file, never the value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from consumerkit.errors import ConfigurationError
from consumerkit.settings.origins import Origins


def unknown(name: str, nearest: str, found: bool) -> ConfigurationError:
    """Return the error for an unknown setting."""
    hint = f"did you mean {nearest}?" if found else "see docs/settings.md, or `consumerkit config show`"
    return ConfigurationError(f"{name} is no setting; {hint}")


def near(name: str, model: type[BaseModel]) -> str | None:
    """Return the setting of a section with the most similar name."""
    known: Iterable[str] = (field.alias or key for key, field in model.model_fields.items())
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def refusal(error: ValidationError, origins: Origins, kind: type[BaseModel]) -> ConfigurationError:
    """Return the first problem as one line; pydantic's own message would quote the value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = tuple(str(part) for part in first["loc"])
    origin = next((found for n in range(len(path), 0, -1) if (found := origins.of(path[:n]))), None)
    if origin is None:
        origin = next((where for known, where in origins.found.items() if known[: len(path)] == path), "settings")
    where = origin if origin != "code" else f"Settings({'.'.join(_named(path))}=...)"
    if first["type"] == "extra_forbidden":
        nearest = near(path[-1], _model_of(kind, path[:-1]))
        return unknown(where, repr(nearest), nearest is not None)
    return ConfigurationError(f"{where}: {_plain(first['msg'])}")


def _named(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path without the names of union members, which pydantic adds."""
    return tuple(part for part in path if part.isidentifier() and part not in ("str", "float", "int", "constrained"))


def _plain(message: str) -> str:
    return message.replace("Input should", "it should").replace("String should", "it should")


def _model_of(kind: type[BaseModel], path: tuple[str, ...]) -> type[BaseModel]:
    model: Any = kind
    for part in path:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            continue
        inner: Any = field.annotation
        model = inner.__args__[1] if part == "handlers" else inner
    return model if isinstance(model, type) and issubclass(model, BaseModel) else kind
