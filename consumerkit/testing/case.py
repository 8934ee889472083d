"""What is tested, and what one run of it left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import MetaData
from sqlalchemy.orm import Session

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.declaration import Declaration
from consumerkit.handlers.handler import AnyHandler, BatchHandler, Handler
from consumerkit.policies.wait import fixed
from consumerkit.testing.boundaries import Kill
from consumerkit.testing.run_file import Contents, RunFile
from consumerkit.transports.base import Record

Probe = Callable[[], Iterable[Hashable]]
"""Returns what has happened outside so far: a sequence with one element for each effect, or a Counter of them."""


@dataclass(frozen=True)
class ProofRequest:
    """The arguments of `assert_idempotent`."""

    handler: AnyHandler | Callable[[str], AnyHandler]
    messages: Sequence[Record]
    metadata: MetaData | None
    setup: Callable[[Session], object] | None
    effects: Probe | None
    ignore: Collection[str]
    dead: Collection[str]
    within: float


@dataclass(frozen=True)
class Case:
    """A handler under test.

    Attributes:
        make: Makes the handler for one worker; it is given the database's URL.
        file: The database of the runs.
        setup: Adds the rows that the handler needs.
        effects: Tells what happened outside.
        within: Seconds that one run may take.
    """

    make: Callable[[str], AnyHandler]
    file: RunFile
    setup: Callable[[Session], object] | None
    effects: Probe | None
    within: float

    def happened(self) -> Counter[Hashable]:
        """Return what has happened outside so far."""
        return Counter() if self.effects is None else Counter(self.effects())


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        name: What it does, in words that go before a colon.
        records: What is sent, in order.
        alone: Whether each message has a transaction of its own.
        kill: Where the first worker is killed.
        two: Whether there are two workers; the group gives one of them up.
        is_survey: Whether it goes on until offsets are committed, to pass each place.
    """

    name: str
    records: tuple[Record, ...]
    alone: bool = False
    kill: Kill | None = None
    two: bool = False
    is_survey: bool = False

    @property
    def partitions(self) -> int:
        """How many partitions each topic has."""
        return 2 if self.two else 1


@dataclass(frozen=True)
class Result:
    """What one run left behind.

    Attributes:
        plan: The run.
        tables: The user's tables.
        effects: What happened outside.
        published: The messages that were published, each once however often it was sent.
        dead: The reason of each dead letter, by its message ID.
        why: What failed, by message ID.
        visits: How often each place was passed.
        was_killed: Whether the worker was killed.
    """

    plan: Plan
    tables: dict[str, Contents]
    effects: Counter[Hashable]
    published: Counter[tuple[str, bytes | None, bytes | None]]
    dead: dict[str, str]
    why: dict[str, str]
    visits: Counter[str]
    was_killed: bool


def maker_of(handler: AnyHandler | Callable[[str], AnyHandler]) -> Callable[[str], AnyHandler]:
    """Return what makes the handler for a worker: the given function, or one that returns the given handler.

    Raises:
        ConfigurationError: It is neither.
    """
    if isinstance(handler, Handler | BatchHandler):
        given = handler
        return lambda _: given
    needs_nothing = isinstance(handler, type) and vars(handler).get("__init__") is None  # so it cannot take a URL
    if needs_nothing or not callable(handler):
        name = handler.__name__ if isinstance(handler, type) else type(handler).__name__
        raise ConfigurationError(
            f"assert_idempotent(handler={name}): give a handler, such as {name}(), or a function that takes the "
            "database's URL and returns one"
        )
    return handler


def declared_for(declared: Declaration, plan: Plan, number: int) -> Declaration:
    """Return the handler's declaration as a run needs it."""
    changes: dict[str, Any] = {"retry": replace(declared.retry, wait=fixed(0))}
    if plan.alone:
        changes |= {"batch_size": 1, "concurrency": 1}
    if declared.steps:
        # The key of a step is made from the handler's name: the other side must not know it from an earlier run.
        changes["name"] = f"{declared.name}-{number}"
    return replace(declared, **changes)
