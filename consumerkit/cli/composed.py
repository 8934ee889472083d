"""Options that several commands share are written once, and given to each command as one value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from consumerkit.cli.database import PrefixOption, SchemaOption, TablesPlace, UrlOption, place
from consumerkit.cli.target import TargetArgument
from consumerkit.storage.tables import DEFAULT_PREFIX

Command = Callable[..., None]


def composed(name: str, make: Callable[..., Any]) -> Callable[[Command], Command]:
    """Return a decorator that replaces a command's parameter with the options of `make`, which returns its value."""
    own = inspect.signature(make, eval_str=True).parameters

    def decorated(command: Command) -> Command:
        @wraps(command)
        def called(**options: Any) -> None:
            given = {option: options.pop(option) for option in own}
            command(**{name: make(**given)}, **options)

        parameters = inspect.signature(command, eval_str=True).parameters.values()
        whole = [part for one in parameters for part in (own.values() if one.name == name else (one,))]
        called.__signature__ = inspect.Signature(whole)  # type: ignore[attr-defined]
        called.__annotations__ = {}  # the signature has them
        return called

    return decorated


def _place(
    target: TargetArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
) -> TablesPlace:
    return place(target, database, prefix, schema)


placed = composed("where", _place)
"""Gives a command the place of its tables, as `where`, from a target or `--database`, `--prefix` and `--schema`."""
