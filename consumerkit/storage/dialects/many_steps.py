"""PostgreSQL's statements that begin, end and read the steps of many messages at once.

Each column travels as one value, which the server splits. So the text of a statement is the same for any number of
steps: the text is compiled once, and the drivers do not write arrays an element at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Table, TextClause, text

from consumerkit.handlers.message_id import DIGEST_BYTES
from consumerkit.storage.dialects.postgresql import quoted
from consumerkit.storage.step_values import End, Name, Start, StepState

_SEPARATOR: Final = "\n"
"""Separates names of steps, which are Python's, and numbers."""
_RESULTS: Final = "\x1e"
"""Separates results, which are JSON: it has no control characters."""


def begin(
    connection: Connection, table: Table, consumer: int, starts: Sequence[Start], owner: bytes, given: Sequence[Any]
) -> set[Name]:
    """Insert rows of steps that have none; return the steps that were inserted.

    Args:
        connection: Of the transaction.
        table: The record.
        consumer: The handler's number.
        starts: The steps, in order of their names.
        owner: The token of the worker that begins them.
        given: Each step's arguments as they are stored, and whether they are sealed.
    """
    parameters = {
        "consumer": consumer,
        "owner": owner,
        "digests": b"".join(one.digest for one in starts),
        "steps": _SEPARATOR.join(one.step for one in starts),
        "arguments": b"".join(one.arguments for one in starts),
        "deadlines": _SEPARATOR.join(repr(float(one.deadline)) for one in starts),
        "undos": _SEPARATOR.join(one.undo or "" for one in starts),
    }
    if any(one.undo is not None for one in starts):
        statement = _begin(table, undone=True)
        parameters |= {"given": [value for value, _ in given], "sealed": [sealed for _, sealed in given]}
    else:
        statement = _begin(table, undone=False)
    return {(bytes(digest), step) for digest, step in connection.execute(statement, parameters)}


def end(connection: Connection, table: Table, consumer: int, ends: Sequence[End], owner: bytes) -> set[Name]:
    """Record outcomes of calls that this owner began; return the steps that are written."""
    parameters = {
        "consumer": consumer,
        "owner": owner,
        "digests": b"".join(one.digest for one in ends),
        "steps": _SEPARATOR.join(one.step for one in ends),
        "states": _SEPARATOR.join(one.state.value for one in ends),
        "results": _RESULTS.join("" if one.result is None else one.result for one in ends),
    }
    return {(bytes(digest), step) for digest, step in connection.execute(_end(table), parameters)}


def _split(name: str, separator: str = _SEPARATOR) -> str:
    return f"string_to_array(CAST(:{name} AS text), chr({ord(separator)}))"


def _piece(name: str) -> str:
    return f"substring(CAST(:{name} AS bytea) FROM CAST(n - 1 AS int) * {DIGEST_BYTES} + 1 FOR {DIGEST_BYTES})"


@cache
def _begin(table: Table, *, undone: bool) -> TextClause:
    name = quoted(table)
    arrays = ", CAST(:given AS bytea[]), CAST(:sealed AS boolean[])" if undone else ""
    columns = ", given, sealed" if undone else ""
    place = "0"
    if undone:
        before = f"before.consumer = :consumer AND before.digest = {_piece('digests')}"
        next_place = f"SELECT coalesce(max(before.place), 0) + 1 FROM {name} AS before WHERE {before}"  # noqa: S608
        place = f"CASE WHEN undo = '' THEN 0 ELSE ({next_place}) END"
    return text(f"""
        INSERT INTO {name}
            (consumer, digest, step, state, owner, arguments, calls, deadline_at, undo, place{columns})
        SELECT :consumer, {_piece("digests")}, step, '{StepState.STARTED.value}', CAST(:owner AS bytea),
               {_piece("arguments")}, 1, clock_timestamp() + make_interval(secs => CAST(seconds AS float8)),
               NULLIF(undo, ''), {place}{columns}
        FROM unnest({_split("steps")}, {_split("deadlines")}, {_split("undos")}{arrays})
             WITH ORDINALITY AS one (step, seconds, undo{columns}, n)
        ORDER BY n
        ON CONFLICT (consumer, digest, step) DO NOTHING
        RETURNING digest, step
    """)  # noqa: S608 - the table's name is quoted


@cache
def _end(table: Table) -> TextClause:
    # The rows are locked in the order in which `StepRows.start` locks them.
    name = quoted(table)
    return text(f"""
        WITH outcome AS (
            SELECT {_piece("digests")} AS digest, step, state, result
            FROM unnest({_split("steps")}, {_split("states")}, {_split("results", _RESULTS)})
                 WITH ORDINALITY AS one (step, state, result, n)
        ), mine AS MATERIALIZED (
            SELECT kept.digest, kept.step, outcome.state, outcome.result
            FROM {name} AS kept JOIN outcome ON outcome.digest = kept.digest AND outcome.step = kept.step
            WHERE kept.consumer = :consumer AND kept.owner = CAST(:owner AS bytea)
            ORDER BY kept.digest, kept.step FOR UPDATE OF kept
        )
        UPDATE {name} AS kept SET state = mine.state, result = NULLIF(mine.result, ''), ended_at = now()
        FROM mine WHERE kept.consumer = :consumer AND kept.digest = mine.digest AND kept.step = mine.step
        RETURNING kept.digest, kept.step
    """)  # noqa: S608 - the table's name is quoted
