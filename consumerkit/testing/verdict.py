"""The text of a failed `assert_idempotent`: which run, what was expected and found, and the way out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from consumerkit.testing.case import Result
from consumerkit.testing.compare import Difference, Where

_MOST_KINDS: Final = 4  # of runs that differ in the same way
_MOST_LINES: Final = 6  # of one run
_ONE_WRITER: Final = (
    "SQLite has one writer, and while handle runs that is the transaction of context.session: write through it."
)
_WAY_OUT: Final = {
    Where.EFFECT: (
        "An effect outside the database is not rolled back: move the call from handle into a step, or publish a "
        "message for it with context.publish. A step whose other side does not recognise the key needs confirm."
    ),
    Where.TABLE: (
        "Make every change through context.session: not with a session or an engine of your own, and not from a value "
        "that the handler kept or read elsewhere. For events in any order use transition or upsert, or compute in SQL."
    ),
    Where.PUBLISHED: "Publish with context.publish, and with the same value and id each time the message runs.",
    Where.DEAD: "The handler fails in this run only: the error says where. A message that runs again must not fail.",
}


def verdict(name: str, found: Mapping[str, Sequence[Difference]], runs: int) -> str:
    """Return the text for runs that differ from the clean run.

    Args:
        name: The handler's name.
        found: What differs, by the name of the run.
        runs: How many runs there were.
    """
    lines = [f"handler {name!r} is not idempotent: {len(found)} of {runs} runs ended otherwise than the clean run."]
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for run, some in found.items():
        alike[tuple(one.sentence for one in some)].append(run)
    for sentences, names in list(alike.items())[:_MOST_KINDS]:
        lines += ["", *(f"{one}:" for one in names), *(f"  {one}" for one in sentences[:_MOST_LINES])]
        if len(sentences) > _MOST_LINES:
            lines.append(f"  and {len(sentences) - _MOST_LINES} more differences")
    if others := [name for names in list(alike.values())[_MOST_KINDS:] for name in names]:
        lines += ["", "Also: " + "; ".join(others)]
    kinds = {one.where for some in found.values() for one in some}
    return "\n".join([*lines, "", *(_WAY_OUT[kind] for kind in Where if kind in kinds)])


def refused(name: str, clean: Result, dead: Collection[str]) -> str:
    """Return what is wrong with the clean run itself; empty if nothing is."""
    wrong = [
        f"  message {one!r} became a dead letter: {reason}; {clean.why.get(one, '')}"
        for one, reason in clean.dead.items()
        if one not in dead
    ]
    wrong += [f"  message {one!r} was to become a dead letter, and did not" for one in dead if one not in clean.dead]
    if not wrong:
        return ""
    out = "Messages that are meant to become dead letters are named by dead=(...)."
    return with_hint("\n".join([f"handler {name!r}: {clean.plan.name} did not end as expected:", *wrong, out]))


def with_hint(text: str) -> str:
    """Return a text with what its error means here, where that is known."""
    return f"{text}\n{_ONE_WRITER}" if "database is locked" in text else text
