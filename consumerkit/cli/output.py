"""Prints the output of commands: tables for people, aligned text for pipes, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumerkit.cli.typed import without_typed
from consumerkit.errors import ConfigurationError, ConsumerkitError, StartError
from consumerkit.observability.printable import printable, printable_lines

_EDGES: Final = 2
"""Character cells that a table's box takes at both ends together."""
_BETWEEN: Final = 3
"""Character cells between two columns."""
_PROSE: Final = 24
"""The longest word that is never broken in a column of prose."""
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns, with control characters escaped; nothing is cut if the output is no terminal.

    On a terminal that is too narrow for the table, each row becomes lines of name and value: no
    word is broken, and no column is lost.
    """
    texts = [[printable(_shown(cell)) for cell in row] for row in rows]
    console = Console(highlight=False)
    if not console.is_terminal:
        _print_aligned(columns, texts)
        return
    widths = _widths(columns, texts, console.width)
    if widths is None:
        _print_records(columns, texts)
        return
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        numeric = all(isinstance(row[number], int) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", width=widths[number], overflow="fold")
    for row in texts:
        table.add_row(*map(Text, row))
    console.print(table)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return each column's width; cells wrap only at spaces. Return None where the room is too small for that."""
    filled = [[column, *(row[number] for row in rows)] for number, column in enumerate(columns)]
    widths = [max(map(cell_len, cells)) for cells in filled]
    least = [_least(column, cells) for column, *cells in filled]
    excess = sum(widths) + _BETWEEN * (len(widths) - 1) + _EDGES - room
    if excess > sum(widths) - sum(least):
        return None
    for _ in range(excess):
        widest = max(range(len(widths)), key=lambda number: (widths[number] > least[number], widths[number]))
        widths[widest] -= 1
    return widths


def _least(column: str, cells: Sequence[str]) -> int:
    """Return a column's least width: times and IDs stay whole, and only very long words of prose are broken."""
    prose = any(" " in cell and not _MOMENT.fullmatch(cell) for cell in cells)
    if not prose:
        return max(map(cell_len, [*column.split(), *cells]))
    return max(map(cell_len, [*column.split(), *(word[:_PROSE] for cell in cells for word in cell.split())]))


def _print_records(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each row as lines of name and value, as `dead-letters show` does; a blank line is between two rows."""
    width = max(map(cell_len, columns))
    for number, row in enumerate(rows):
        if number:
            say("")
        for column, cell in zip(columns, row, strict=True):
            say(f"{column}{' ' * (width - cell_len(column))}  {cell}".rstrip())


def _print_aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [list(columns), *map(list, rows)]
    widths = [max(cell_len(line[number]) for line in lines) for number in range(len(columns))]
    for line in lines:
        cells = [cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        say("  ".join(cells).rstrip())


def print_json(value: object) -> None:
    """Print JSON: one line for a value, or one line for each item of a list."""
    for item in value if isinstance(value, list) else [value]:
        say(json.dumps(item, default=_plain))


def as_object(row: Any) -> dict[str, object]:
    """Return a database row as a dict for `print_json`."""
    mapping: Mapping[str, object] = row._mapping  # noqa: SLF001 - SQLAlchemy's public name
    return dict(mapping)


def say(line: str) -> None:
    """Print one line; characters that are invisible, or missing in the terminal's encoding, are escaped."""
    line = printable_lines(line)
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


def complain(error: object) -> None:
    """Print an error on standard error as one line; an error from a target's own code keeps its line breaks."""
    text = without_typed(str(error))
    shown = printable_lines(text) if getattr(error, "has_lines", False) else printable(text)
    print(f"error: {shown}", file=sys.stderr, flush=True)


def exit_code(error: ConsumerkitError) -> int:
    """Return the exit status for an error: 2 where declarations, arguments or the environment are wrong, else 1."""
    return 2 if isinstance(error, ConfigurationError | StartError) else 1


def moment(value: datetime | None) -> str:
    """Return a time as text in UTC; a time without a zone is in UTC."""
    if value is None:
        return ""
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return aware.isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")


def escaped(value: bytes | None) -> str:
    r"""Return a payload as readable text, with all other bytes escaped.

    Example:
        >>> print(escaped(b"caf\xc3\xa9 \xff\x1b[2J"))
        café \xff\x1b[2J
    """
    if value is None:
        return "(none)"
    return printable(value.decode("utf-8", "backslashreplace"))


def _shown(cell: object) -> str:
    if isinstance(cell, datetime):
        return moment(cell)
    return "" if cell is None else str(cell)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    raise TypeError(f"{type(value).__name__} is not JSON")
