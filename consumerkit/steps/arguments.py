"""Turns a step's arguments into bytes: repeated calls for one message must have the same arguments."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from consumerkit.handlers.context import BatchContext, Context
from consumerkit.handlers.declared_steps import DeclaredStep
from consumerkit.handlers.effects import Effects, PlainEffects
from consumerkit.handlers.no_steps import Undoing
from consumerkit.handlers.value_bytes import NoStableBytes, encode_field

_NOT_COUNTED = (Effects, PlainEffects, Context, BatchContext)


def fingerprint(declared: DeclaredStep, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Return 16 bytes that identify a call's arguments.

    Raises:
        TypeError: The step does not take these arguments, or one has no bytes that are equal in every process.
    """
    name = declared.name
    try:
        bound = declared.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"step {name!r}: {error}; it takes {_shown(declared.signature)}") from None
    bound.apply_defaults()
    made = blake2b(digest_size=16, person=b"step arguments")
    for parameter, value in bound.arguments.items():
        if isinstance(value, _NOT_COUNTED):
            continue
        try:
            encoded = encode_field(value)
        except NoStableBytes as error:
            raise TypeError(
                f"step {name!r}: argument {parameter!r} {error}, so it cannot be compared with a later call's; give "
                "the step only the fields that it needs"
            ) from None
        if encoded is None and value is not None:
            raise TypeError(
                f"step {name!r}: argument {parameter!r} is a {type(value).__name__}, which cannot be compared with a "
                "later call's; give the step plain values, and take such objects from the handler"
            )
        size = -1 if encoded is None else len(encoded)
        made.update(f"{parameter}\x00{size}\x00".encode())
        made.update(encoded or b"")
    return made.digest()


def kept_arguments(declared: DeclaredStep, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Return a call's arguments as JSON, for the step's undo.

    Raises:
        TypeError: An argument does not have the type of its annotation.
    """
    bound = declared.signature.bind(*args, **kwargs)
    bound.apply_defaults()
    kept = {}
    for name, adapter in declared.given.items():
        try:
            text = adapter.dump_json(bound.arguments[name], warnings=False)
            adapter.validate_json(text)
        except ValueError as error:
            raise TypeError(
                f"step {declared.name!r}: argument {name!r} is a {type(bound.arguments[name]).__name__}, which "
                f"cannot be kept for its undo as its annotated type: {type(error).__name__}"
            ) from error
        kept[name] = text.decode()
    return json.dumps(kept).encode()


def read_arguments(
    declared: DeclaredStep, kept: bytes, calls: Undoing, message_id: str
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the arguments that `kept_arguments` wrote, by position and by name.

    Raises:
        ValueError: The step no longer takes these arguments.
    """
    texts = json.loads(kept)
    effects = (Effects if declared.is_async else PlainEffects)(calls, message_id)
    given = {
        name: declared.given[name].validate_json(texts.get(name, "null")) if name in declared.given else effects
        for name in declared.signature.parameters
    }
    bound = inspect.BoundArguments(declared.signature, given)
    return bound.args, bound.kwargs


def passed(declared: DeclaredStep, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return a call's arguments as its `confirm` gets them: by position, unless the step takes them by name only."""
    bound = declared.signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args, bound.kwargs


def _shown(signature: inspect.Signature) -> str:
    return f"({', '.join(signature.parameters)}) after the key"
