"""A dead letter's history as JSON: its earlier errors, and who did what about it and when."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

Entry = dict[str, Any]
ENTRIES: Final = 50
TEXT_CHARACTERS: Final = 500


def entry(what: str, by: str, *, note: str = "", **facts: Any) -> Entry:
    """Return an entry with the present time; facts that are None or empty are left out.

    Args:
        what: "redriven", "resolved" or "discarded".
        by: Who did it.
        note: Why.
        facts: The message's latest error.

    Example:
        >>> entry("redriven", "ann", reason="exhausted", error="")["reason"]
        'exhausted'
    """
    made: Entry = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "what": what, "by": by, "note": note}
    return {name: _plain(value) for name, value in (made | facts).items() if value not in (None, "")}


def extended(history: str, *entries: Entry) -> str:
    """Return a history with more entries; the oldest are dropped if there are too many."""
    return json.dumps([*load(history), *entries][-ENTRIES:])


def load(history: str) -> list[Entry]:
    """Return the entries, oldest first."""
    found: list[Entry] = json.loads(history)
    return found


def within(entries: Sequence[Entry], size: int) -> str:
    """Return as many of the latest entries as fit into `size` bytes, as JSON in ASCII.

    Example:
        >>> within([{"n": 1}, {"n": 2}], 12)
        '[{"n": 2}]'
    """
    kept = list(entries)
    while len(text := json.dumps(kept)) > size and kept:
        del kept[0]
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value
        return aware.isoformat(timespec="milliseconds")
    return value[:TEXT_CHARACTERS] if isinstance(value, str) else value
