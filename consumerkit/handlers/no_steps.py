"""Stand-ins for the steps of a message, where no step can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.steps import BoundStep


class NoSteps:
    """Stands for the steps of a handler that has none, and of a duplicate."""

    def run(self, step: BoundStep[..., Any], args: Sequence[Any], kwargs: dict[str, Any], *, inside: bool) -> Any:
        """Refuse."""
        raise ConfigurationError(f"{step!r} cannot be run here: only handle and prepare of a Handler run steps")

    def done(self, step: BoundStep[..., Any]) -> Any:
        """Refuse."""
        raise ConfigurationError(f"{step!r} has no result here: only handle of a Handler has results of steps")

    def alive(self) -> None:
        """Refuse."""
        raise ConfigurationError("no step runs here")


class Undoing(NoSteps):
    """Stands for the steps of a message whose steps are being undone: `alive` does nothing."""

    async def _alive(self) -> None: ...

    def __init__(self, *, is_async: bool) -> None:
        self._is_async = is_async

    def alive(self) -> Any:
        """Do nothing: an undo that is under way needs no extension of its deadline."""
        return self._alive() if self._is_async else None


NO_STEPS: Final = NoSteps()
