"""Where each setting was set."""

from __future__ import annotations

Path_ = tuple[str, ...]


class Origins:
    """Where each value was set, by its path."""

    def __init__(self) -> None:
        self.found: dict[Path_, str] = {}

    def of(self, path: Path_) -> str | None:
        """Return where a value was set; None where it was not."""
        return self.found.get(path)

    def add(self, path: Path_, origin: str) -> None:
        """Record a value, unless a place before has set it."""
        self.found.setdefault(path, origin)
