"""What commands print: tables for people, aligned text for pipes, JSON for programs."""

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
"""Cells that a table's box takes at both ends together, and"""
_BETWEEN: Final = 3
"""between two columns."""
_PROSE: Final = 24
"""A longer word may be broken, where there are others beside it."""
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns; escapes control characters, and cuts nothing where the output is no terminal.

    A terminal that is too narrow for the table gets each row as lines of name and value: no word is broken, and no
    column lost.
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
    """Return each column's width; only at spaces may they wrap, and None is returned where that is not enough."""
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
    """Return how narrow a column may get: times and IDs stay whole, and of prose only its longest words are broken."""
    prose = any(" " in cell and not _MOMENT.fullmatch(cell) for cell in cells)
    if not prose:
        return max(map(cell_len, [*column.split(), *cells]))
    return max(map(cell_len, [*column.split(), *(word[:_PROSE] for cell in cells for word in cell.split())]))


def _print_records(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each row as `dead-letters show` prints a letter."""
    width = max(map(cell_len, columns))
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            say(f"{column}{' ' * (width - cell_len(column))}  {cell}".rstrip())
        say("")


def _print_aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [list(columns), *map(list, rows)]
    widths = [max(cell_len(line[number]) for line in lines) for number in range(len(columns))]
    for line in lines:
        cells = [cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        say("  ".join(cells).rstrip())


def print_json(value: object) -> None:
    """Print JSON: one object, or one line for each of a list's."""
    for item in value if isinstance(value, list) else [value]:
        say(json.dumps(item, default=_plain))


def as_object(row: Any) -> dict[str, object]:
    """Return a database row as what `print_json` takes."""
    mapping: Mapping[str, object] = row._mapping  # noqa: SLF001 - SQLAlchemy's public name
    return dict(mapping)


def say(line: str) -> None:
    """Print one line; what cannot be printed or seen, and what the terminal's encoding lacks, is escaped."""
    line = printable_lines(line)
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


def complain(error: object) -> None:
    """Print an error on standard error: as one line, and what a target's own code said with its line breaks."""
    text = without_typed(str(error))
    shown = printable_lines(text) if getattr(error, "has_lines", False) else printable(text)
    print(f"error: {shown}", file=sys.stderr, flush=True)


def exit_code(error: ConsumerkitError) -> int:
    """Return the exit status for an error: 2 where declarations, the call or the surroundings are wrong, else 1."""
    return 2 if isinstance(error, ConfigurationError | StartError) else 1


def moment(value: datetime | None) -> str:
    """Return a time as text, in UTC; databases without time zones hold UTC."""
    if value is None:
        return ""
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return aware.isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")


def escaped(value: bytes | None) -> str:
    r"""Return a payload for people: text where it is text, all else as escapes.

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
