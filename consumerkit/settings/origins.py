"""Where each setting was set."""

from __future__ import annotations

Path_ = tuple[str, ...]


class Origins:
    """Where each value was set, by its path."""

    def __init__(self) -> None:
        self.found: dict[Path_, str] = {}

    def of(self, path: Path_) -> str | None:
        """Return where a value, or the first part of it, was set; None where it was not."""
        parts = (origin for place, origin in self.found.items() if place[: len(path)] == path)
        return self.found.get(path) or next(parts, None)

    def add(self, path: Path_, origin: str) -> None:
        """Record where a value was set, unless an earlier source has set it."""
        self.found.setdefault(path, origin)
