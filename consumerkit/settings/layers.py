"""Reads settings from code, the environment and a file, merges them, and records where each value was set."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic_settings import BaseSettings, EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

from consumerkit.errors import ConfigurationError
from consumerkit.settings.origins import Origins, Path_
from consumerkit.settings.refusals import near, unknown

PREFIX: Final = "CONSUMERKIT_"
CONFIG: Final = "CONSUMERKIT_CONFIG"
# Variables with the prefix that are no settings.
_OTHERS: Final = ("CONSUMERKIT_APP", CONFIG, "CONSUMERKIT_MONITORING", "CONSUMERKIT_POSTGRES_BIN")
_OTHER_PREFIXES: Final = (
    "CONSUMERKIT_FAILPOINT",
    "CONSUMERKIT_SUPERVISOR",
    "CONSUMERKIT_TEST_",
    # Kubernetes sets these in every pod of a namespace with a Service named consumerkit.
    "CONSUMERKIT_PORT",
    "CONSUMERKIT_SERVICE_",
)
SECRETS: Final = (("database",), ("kafka", "password"), ("kafka", "key_password"), ("kafka", "token_client_secret"))
_LARGEST: Final = 64 * 1024


def handler_key(name: str) -> str:
    """Return a handler's name as settings write it: the name of a variable has neither hyphen nor dot.

    Example:
        >>> handler_key("credit-account")
        'credit_account'
    """
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def read_layers(
    kind: type[BaseSettings], values: Mapping[str, Any], file: str | Path | None
) -> tuple[dict[str, Any], Origins]:
    """Return all settings, merged, and where each was set.

    Raises:
        ConfigurationError: A source cannot be read, or sets a value twice, or sets an unknown one.
    """
    origins = Origins()
    merged: dict[str, Any] = {}
    for data, origin_of in (_code(values), _environment(kind), _file(kind, file)):
        for path, value in _leaves(_with_handler_keys(data)):
            if path not in origins.found:
                origins.add(path, origin_of(path))
                _put(merged, path, value)
    return merged, origins


def _code(values: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    plain = {
        name: value.model_dump(exclude_unset=True, by_alias=True) if isinstance(value, BaseModel) else value
        for name, value in values.items()
    }
    return plain, lambda _: "code"


def _environment(kind: type[BaseSettings]) -> tuple[dict[str, Any], Any]:
    names = {name.upper(): name for name in os.environ if name.upper().startswith(PREFIX)}
    names = {upper: name for upper, name in names.items() if not _is_other(upper)}
    secrets = {_variable(path): path for path in SECRETS}
    for upper, name in names.items():
        if not (upper.endswith("_FILE") and upper.removesuffix("_FILE") in secrets):
            _check_variable(kind, upper.removeprefix(PREFIX).lower().split("__"), name)
    data = _variables(kind)
    for upper, path in secrets.items():
        if (file := names.get(f"{upper}_FILE")) is not None:
            if upper in names:
                raise ConfigurationError(f"{names[upper]} and {file} are both set; keep one")
            _take(data, (*path[:-1], f"{path[-1]}_file"))  # pydantic-settings has read it as a value of the section
            _put(data, path, _secret(file, os.environ[file]))
    return data, partial(_variable_of, names)


def _variables(kind: type[BaseSettings]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = EnvSettingsSource(kind)()
    except SettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        raise ConfigurationError(f"{PREFIX}{field[1].upper() if field else '...'} is not JSON; set its parts") from None
    return found


def _variable_of(names: Mapping[str, str], path: Path_) -> str:
    """Return the variable that has set a value, alone or within JSON."""
    for length in range(len(path), 0, -1):
        for ending in ("", "_FILE"):
            if (found := names.get(_variable(path[:length]) + ending)) is not None:
                return found
    return "the environment"


def _is_other(name: str) -> bool:
    return name in _OTHERS or name.startswith(_OTHER_PREFIXES)


def _variable(path: Path_) -> str:
    return PREFIX + "__".join(path).upper()


def _check_variable(kind: type[BaseModel], path: list[str], name: str) -> None:
    """Refuse a variable that sets nothing: its name is probably misspelt."""
    model: type[BaseModel] | None = kind
    at = 0
    while at < len(path):
        fields = {} if model is None else {field.alias or key: field for key, field in model.model_fields.items()}
        field = fields.get(path[at])
        if field is None:
            nearest = None if model is None else near(path[at], model)
            right = PREFIX + "__".join([*path[:at], nearest or "", *path[at + 1 :]]).upper()
            raise unknown(name, right, nearest is not None)
        inner = field.annotation
        if path[at] == "handlers":
            model, at = _argument(inner), at + 2
        else:
            model, at = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None, at + 1


def _argument(annotation: Any) -> type[BaseModel]:
    found: type[BaseModel] = annotation.__args__[1]
    return found


def _file(kind: type[BaseSettings], given: str | Path | None) -> tuple[dict[str, Any], Any]:
    place, data = _table(given)
    for path in SECRETS:
        file_path = (*path[:-1], f"{path[-1]}_file")
        if (named := _take(data, file_path)) is not None:
            if _take(data, path) is not None:
                raise ConfigurationError(f"{place}: {'.'.join(path)} and {'.'.join(file_path)} are both set; keep one")
            _put(data, path, _secret(f"{place}: {'.'.join(file_path)}", str(named)))
    return data, lambda path: f"{place}: {'.'.join(path)}"


def _table(given: str | Path | None) -> tuple[str, dict[str, Any]]:
    """Return the file's name and its settings."""
    if given is None and (variable := os.environ.get(CONFIG)):
        given = variable
    if given is not None:
        return Path(given).name, _loaded(Path(given), tool=Path(given).name == "pyproject.toml", must=True)
    own, project = Path("consumerkit.toml"), Path("pyproject.toml")
    tool = _loaded(project, tool=True, must=False)
    if own.exists():
        if tool:
            raise ConfigurationError(
                "consumerkit.toml and [tool.consumerkit] in pyproject.toml are both there; keep one"
            )
        return own.name, _loaded(own, tool=False, must=True)
    return project.name, tool


def _loaded(file: Path, *, tool: bool, must: bool) -> dict[str, Any]:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not must:
            return {}
        raise ConfigurationError(f"settings: there is no file {file.name!r}; see {CONFIG}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file.name} cannot be read: {type(error).__name__}") from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at (line \d+, column \d+|end of document)\)", str(error))
        raise ConfigurationError(f"{file.name} is not valid TOML{f': see {place[1]}' if place else ''}") from None
    found = data.get("tool", {}).get("consumerkit", {}) if tool else data
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file.name}: tool.consumerkit is no table")
    return found


def _secret(name: str, path: str) -> str:
    """Return a secret from its file, without the final line break; errors hide the path, which may be the secret."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(_LARGEST).rstrip("\r\n")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigurationError(f"{name}: the named file cannot be read: {why}") from None
    if not text:
        raise ConfigurationError(f"{name}: the named file is empty")
    return text


def _with_handler_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with each handler's name as variables write it, so that the sources can be merged."""
    handlers = data.get("handlers")
    if not isinstance(handlers, Mapping):
        return dict(data)
    renamed: dict[str, Any] = {}
    for name, value in handlers.items():
        if handler_key(name) in renamed:
            raise ConfigurationError(f"settings: handlers has {handler_key(name)!r} twice, as {name!r} too; keep one")
        plain = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
        renamed[handler_key(name)] = plain
    return {**data, "handlers": renamed}


def _leaves(data: Mapping[str, Any], path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _put(data: dict[str, Any], path: Path_, value: object) -> None:
    for name in path[:-1]:
        inner = data.setdefault(name, {})
        if not isinstance(inner, dict):
            return  # an earlier source has set the whole section, wrongly, and an error reports it
        data = inner
    data[path[-1]] = value


def _take(data: dict[str, Any], path: Path_) -> object | None:
    for name in path[:-1]:
        inner = data.get(name)
        if not isinstance(inner, dict):
            return None
        data = inner
    found: object | None = data.pop(path[-1], None) if path[-1].endswith("_file") else data.get(path[-1])
    return found
