"""Chooses the directories that `consumerkit run --reload` watches."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from consumerkit.cli import target as targets
from consumerkit.errors import ConfigurationError
from consumerkit.supervisor.changes import check_watchfiles


def watched(target: str, given: Sequence[str]) -> list[Path]:
    """Return the directories to watch: those given, else the working directory and that of the target's package.

    Args:
        target: `module:attribute`; the module is not imported.
        given: The directories that `--reload-dir` names.

    Raises:
        ConfigurationError: The target has another form, or a directory does not exist.
        StartError: watchfiles is not installed.
    """
    check_watchfiles()
    targets.check_form(target)
    for name in given:
        if not Path(name).is_dir():
            raise ConfigurationError(f"--reload-dir {name!r}: there is no such directory")
    directories = [Path(name) for name in given] or [Path(), *_package_of(target)]
    return [path.resolve() for path in directories]


def _package_of(target: str) -> list[Path]:
    """Return the directories of the target's top-level package or module, wherever it is installed."""
    targets.search_here()
    try:
        spec = importlib.util.find_spec(target.partition(":")[0].partition(".")[0])
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [Path(place) for place in spec.submodule_search_locations]
    return [Path(spec.origin).parent] if spec.has_location and spec.origin else []
