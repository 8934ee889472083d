"""A plan, made from a seed: a configuration, the messages, and the faults between them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

Form = Literal["coroutine", "plain"]
Order = Literal["partition", "key", "none"]
Acks = Literal["at once", "late", "lost", "refused"]

# What a message does: it succeeds, fails so many times, fails for ever, is rejected, defers so many times, or hides an
# error of the database. `message_faults` has more.
KINDS = ("ok", "fail", "dead", "reject", "defer", "swallow")
# Faults that need a second worker, or a database server.
TWO_WORKERS = frozenset({"zombie in its transaction", "zombie between two"})
SERVER = frozenset({"terminate", "terminate busy", "backup", "restore"})


class Given(NamedTuple):
    """One message to send.

    Attributes:
        id: The message ID.
        key: The number of its key, or None.
        partition: Where it goes.
        kind: What it does, one of `KINDS` or of those in `message_faults`.
        times: How often, where it fails or defers; a fault of `message_faults` that has 0 here is for ever.
        variant: Another one under the same ID has another fingerprint.
        first: Whether no message before it has its ID.
    """

    id: str
    key: int | None
    partition: int
    kind: str
    times: int
    variant: int
    first: bool


class Step(NamedTuple):
    """One action of the run.

    Attributes:
        what: "send", "control records", or a fault.
        number: Which messages, partition or worker is meant.
        after: Begin once the handlers have been called this many more times, or nothing is left to do.
    """

    what: str
    number: int = 0
    after: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a seed decides.

    Attributes:
        profile: Which kind of run it is; see `draw`.
        slow_outbox: Whether the database waits within each INSERT into the outbox, after its rows are numbered.
        slow_claims: Whether it waits at each row that a claim inserts.
        grace: Seconds that a worker has to stop.
        pause: Seconds that each call of the handler waits.
        allowance: See `Brake`; so large, as a rule, that the brake never goes on.
        earned: See `Brake`.
        memory_budget: Bytes of messages in hand; so large, as a rule, that it is never spent.
        parking_limit: See `Handler`.
        message_faults: Which messages bring a fault along; see `message_faults`.
    """

    seed: int
    profile: str
    database: Literal["postgresql", "sqlite"]
    driver: str
    workers: int
    form: Form
    ordering: Order
    lanes: int
    batch_size: int
    attempts: int
    in_place: int
    wait: float
    grace: float
    pause: float
    publishing: bool
    acks: Acks
    dead_letter: bool
    hold_key: bool
    resend_runs: bool
    on_duplicate: bool
    partitions: int
    slow_outbox: bool
    slow_claims: bool
    waves: tuple[tuple[Given, ...], ...]
    steps: tuple[Step, ...]
    allowance: int = 10_000
    earned: float = 0.25
    memory_budget: int = 16 << 20
    parking_limit: int = 10_000
    message_faults: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[str, ...]:
        """The faults of the run's surroundings."""
        return tuple(step.what for step in self.steps if step.what != "send")

    @property
    def expected(self) -> tuple[str, ...]:
        """The faults that must have taken effect; otherwise the run proves nothing."""
        return (*self.faults, *self.message_faults)

    def has(self, *faults: str) -> bool:
        """Return whether one of these faults is planned."""
        return not set(faults).isdisjoint(self.faults)

    @property
    def has_copies(self) -> bool:
        """Whether an ID is sent more than once."""
        return any(not one.first for wave in self.waves for one in wave)

    def shown(self) -> str:
        """Return the options in words, a line each."""
        kinds = Counter(one.kind for wave in self.waves for one in wave)
        left_out = {"waves", "steps"}
        lines = [f"{name} = {value!r}" for name, value in vars(self).items() if name not in left_out]
        sent = [len(wave) for wave in self.waves]
        copies = sum(not one.first for wave in self.waves for one in wave)
        lines.append(f"messages = {sent}, {copies} of them copies; {dict(kinds)}")
        lines += [f"  after {step.after:3} calls: {step.what} {step.number}" for step in self.steps]
        return "\n".join(lines)
