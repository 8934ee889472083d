"""A worker's settings from outside the code; `consumerkit.settings` is imported only where there are any."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.declaration import Declaration

if TYPE_CHECKING:
    from consumerkit.settings import Settings


P = ParamSpec("P")
S = TypeVar("S")


def knowing_what_is_given(init: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """Record in `self.given` which arguments `__init__` got: an explicit default differs from an omitted argument."""

    @wraps(init)
    def knowing(self: S, /, *args: P.args, **given: P.kwargs) -> None:
        self.given = given  # type: ignore[attr-defined]
        init(self, *args, **given)

    return knowing


def settings_of(settings: Settings | None, database: object, kafka: object) -> Settings | None:
    """Return a worker's settings: those given, or those read from outside where the database or Kafka is missing.

    Raises:
        ConfigurationError: The given value is no `Settings`, or what is read is wrong.
    """
    if settings is None and database is not None and kafka is not None:
        return None
    from consumerkit.settings import Settings

    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise ConfigurationError(f"Worker(settings=...) takes Settings(...), not {type(settings).__name__}")
    return settings


def applied(settings: Settings, given: Collection[str]) -> dict[str, Any]:
    """Return the arguments that the settings decide: those that are not given in code."""
    from consumerkit.settings.applied import arguments

    return {name: value for name, value in arguments(settings, without=given).items() if name not in given}


def declarations(settings: Settings, declared: Sequence[Declaration]) -> tuple[Declaration, ...]:
    """Return the handlers' declarations with the settings applied."""
    from consumerkit.settings.applied import declarations as apply

    return apply(settings, declared)


def missing(name: str) -> ConfigurationError:
    """Return the error for a worker without a database or a broker."""
    variable = "CONSUMERKIT_DATABASE" if name == "database" else "CONSUMERKIT_KAFKA__BOOTSTRAP"
    return ConfigurationError(f"Worker has no {name}: give {name}=..., or set {variable}")
