"""The options that choose dead letters."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

from consumerkit.cli import target as targets
from consumerkit.cli.numbers import HIGHEST, storable, whole
from consumerkit.errors import ConfigurationError
from consumerkit.outcome import Reason
from consumerkit.redaction.plain_words import shown_word
from consumerkit.redrive import Selection, State

WhatArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ID|TARGET",
        help="IDs, as list shows them (also 7-12), and the worker as module:attribute, in any order.",
        show_default=False,
    ),
]
HandlerOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only this handler.", show_default=False)]
OneHandlerOption = Annotated[str, typer.Option(metavar="NAME", help="The handler's name.", show_default=False)]
ReasonOption = Annotated[
    Reason | None,
    typer.Option(metavar="REASON", help=f"Only this reason: {', '.join(Reason)}.", show_default=False),
]
LikeOption = Annotated[
    int | None,
    typer.Option(
        metavar="ID",
        callback=storable,
        help="Only letters like this one: same handler, error type and place.",
        show_default=False,
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Only letters dead since then: 2026-11-25T10:00 (UTC), or a span back: 90m, 6h, 2d.",
        show_default=False,
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only letters dead before then; same forms as --since.", show_default=False),
]
AllOption = Annotated[bool, typer.Option("--all", help="All of them, instead of a choice.")]
ByOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Your name, for the audit record.", show_default="your user name")
]
WhyOption = Annotated[
    str, typer.Option("--note", metavar="TEXT", help="The reason, for the audit record.", show_default=False)
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would happen to each; change nothing.")]
StateOption = Annotated[str, typer.Option(metavar="STATE", help=f"Only this state: {', '.join(State)} or all.")]
_MOST: Final = 100_000
_OTHERWISE: Final = "Choose by --handler, --reason, --since or --until instead, or in parts"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parted(what: list[str] | None) -> tuple[list[int], str | None]:
    """Return the IDs and the target from a command's arguments; the target may come from its variable.

    Raises:
        ConfigurationError: An argument is neither, there is a second target, or there are too many
            IDs.
    """
    ids: list[int] = []
    named: list[str] = []
    for word in what or ():
        first, _, last = word.partition("-")
        if first.isdecimal() and (last.isdecimal() or "-" not in word):
            ids += _range(word, whole(first), whole(last or first))
        elif word[:1].isdecimal() and ":" not in word:
            raise ConfigurationError(
                f"{shown_word(word)} is no ID and no range of IDs such as 7-12, nor module:attribute"
            )
        else:
            named.append(word)
    if len(named) > 1:
        raise ConfigurationError(
            f"{shown_word(named[1])} is neither an ID nor the target, which is {shown_word(named[0])}"
        )
    if len(ids) > _MOST:
        raise ConfigurationError(f"{len(ids)} IDs are named; at most {_MOST} fit one command. {_OTHERWISE}")
    return ids, named[0] if named else os.environ.get(targets.VARIABLE)


def _range(word: str, first: int | None, last: int | None) -> range:
    if first is None or last is None or not 1 <= first <= last:
        raise ConfigurationError(
            f"{shown_word(word)} names no ID; an ID is a number from 1 to {HIGHEST}, and a range begins with its lowest"
        )
    if last - first >= _MOST:
        raise ConfigurationError(
            f"{shown_word(word)} names {last - first + 1} IDs; at most {_MOST} fit one command. {_OTHERWISE}"
        )
    return range(first, last + 1)


def selected(
    ids: list[int],
    handler: str | None,
    reason: Reason | None,
    like: int | None,
    since: str | None,
    until: str | None,
) -> Selection:
    """Return the selection that the options describe.

    Raises:
        ConfigurationError: A time cannot be read.
    """
    return Selection(
        ids=tuple(ids) or None,
        handler=handler,
        reason=reason and reason.value,
        like=like,
        since=moment_of("--since", since),
        until=moment_of("--until", until),
    )


def states(name: str) -> tuple[State, ...]:
    """Return the states that a name stands for.

    Raises:
        ConfigurationError: There is no such state.
    """
    if name == "all":
        return tuple(State)
    try:
        return (State(name),)
    except ValueError:
        raise ConfigurationError(f"--state {shown_word(name)}: use one of {', '.join(State)}, all") from None


def moment_of(option: str, text: str | None) -> datetime | None:
    """Return the time that an option names: a date and time (UTC by default), or a span before now.

    Raises:
        ConfigurationError: The text cannot be read.

    Example:
        >>> moment_of("--since", "2026-11-25T10:00")
        datetime.datetime(2026, 11, 25, 10, 0, tzinfo=datetime.timezone.utc)
    """
    if text is None:
        return None
    amount, unit = text[:-1], text[-1:]
    try:
        if unit in _UNITS and amount.isdecimal():
            return datetime.now(UTC) - timedelta(**{_UNITS[unit]: int(amount)})
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{option} {shown_word(text)}: write 2026-11-25T10:00, or 90m, 6h, 2d for so long ago"
        ) from None
