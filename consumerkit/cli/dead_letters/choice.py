"""The choice of dead letters: the same options for every command."""

from __future__ import annotations

from dataclasses import dataclass

from consumerkit.cli.composed import composed
from consumerkit.cli.database import PrefixOption, SchemaOption, TablesPlace, UrlOption, place
from consumerkit.cli.dead_letters.options import (
    HandlerOption,
    LikeOption,
    ReasonOption,
    SinceOption,
    UntilOption,
    WhatArgument,
    parted,
    selected,
)
from consumerkit.errors import ConfigurationError
from consumerkit.outcome import Reason
from consumerkit.redrive import Selection
from consumerkit.storage.tables import DEFAULT_PREFIX


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The letters that a command chooses, and the database that holds them.

    Attributes:
        ids: The IDs among its arguments.
        target: The target among its arguments, or from its variable.
    """

    ids: list[int]
    target: str | None
    database: str | None
    prefix: str
    schema: str | None
    handler: str | None
    reason: Reason | None
    like: int | None
    since: str | None
    until: str | None

    @property
    def where(self) -> TablesPlace:
        """The place of the letters' tables."""
        return place(self.target, self.database, self.prefix, self.schema)

    @property
    def selection(self) -> Selection:
        """The letters that are chosen.

        Raises:
            ConfigurationError: A time cannot be read.
        """
        return selected(self.ids, self.handler, self.reason, self.like, self.since, self.until)

    def checked(self, *, everything: bool) -> Selection:
        """Return the selection of the chosen letters.

        Raises:
            ConfigurationError: No letters are chosen and `everything` is false, or a time cannot be
                read.
        """
        if (selection := self.selection).is_everything and not everything:
            raise ConfigurationError(
                "no dead letter is chosen; give IDs, --handler, --reason, --like, --since or --until, or --all"
            )
        return selection


def _given(
    what: WhatArgument = None,
    database: UrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
    schema: SchemaOption = None,
    handler: HandlerOption = None,
    reason: ReasonOption = None,
    like: LikeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
) -> Choice:
    ids, target = parted(what)
    return Choice(
        ids=ids,
        target=target,
        database=database,
        prefix=prefix,
        schema=schema,
        handler=handler,
        reason=reason,
        like=like,
        since=since,
        until=until,
    )


choosing = composed("choice", _given)
"""Gives a command the letters that its options choose, as `choice`."""
