"""Prints rows of the tables: many as a list, or one as facts and its payload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from consumerkit.cli.output import as_object, escaped, print_json, print_table, say
from consumerkit.observability.printable import printable
from consumerkit.storage.payload import Payload

ValueOption = Annotated[bool, typer.Option("--value", help="Show the payload, too: key, headers and value.")]


def print_rows(
    rows: Sequence[Any],
    titles: Sequence[str],
    line: Callable[[Any], Sequence[object]],
    *,
    none: str,
    as_json: bool,
    limit: int | None = None,
    next_page: Callable[[Any], str] = lambda last: "",
) -> None:
    """Print rows as JSON, or as a table.

    Args:
        rows: What was found.
        titles: The table's columns.
        line: Returns the cells of a row.
        none: The line that says that there are no rows.
        as_json: Whether to print JSON.
        limit: How many were asked for; there may be more if so many were found.
        next_page: Returns the option that shows more, from the last row.
    """
    if as_json:
        print_json([as_object(row) for row in rows])
        return
    if not rows:
        say(none)
        return
    print_table(titles, [line(row) for row in rows])
    if len(rows) == limit:
        say(f"there may be more: {next_page(rows[-1])}")


def print_facts(facts: Mapping[str, object]) -> None:
    """Print one line of name and value for each fact."""
    for name, fact in facts.items():
        say(f"{name:<12} {printable(str(fact))}")


def print_payload(key: bytes | None, found: Payload | None) -> None:
    """Print a message's key, headers and value, or how to see them."""
    if found is None:
        say("payload      not shown; --value shows it")
        return
    say(f"{'key':<12} {escaped(key)}")
    for name, content in found.headers:
        say(f"{'header':<12} {printable(name)}: {escaped(content)}")
    say(f"{'value':<12} {escaped(found.value)}")


def error_of(row: Any, length: int | None = None) -> str:
    """Return the type and the text of a row's error, cut if it is longer than `length`."""
    text = f"{row.error_type}: {row.error}" if row.error else str(row.error_type)
    return text if length is None or len(text) <= length else f"{text[: length - 1]}…"
