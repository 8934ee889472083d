"""Files that another process writes line by line, read while it writes.

A reader may see a part of a line: the system writes the pages of a file one after the other, even of a single `write`.
"""

from pathlib import Path


class Lines:
    """Reads the lines that were added to a file since the last look; leaves a last one without its end for the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def added(self) -> list[str]:
        """The lines that are whole by now and were not returned before; none while there is no file."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode().splitlines()


def whole_lines(path: Path) -> list[str]:
    """All lines of a file, without a last one that has no end yet; none while there is no file."""
    return Lines(path).added()
