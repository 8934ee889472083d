"""`consumerkit retry`: shows the attempts that a handler's retry policy makes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Annotated, Any

import typer

from consumerkit.cli import target as targets
from consumerkit.cli.examples import examples
from consumerkit.cli.numbers import storable
from consumerkit.cli.output import print_json, print_table, say
from consumerkit.errors import ConfigurationError
from consumerkit.handlers.declaration import Declaration, declare
from consumerkit.handlers.handler import AnyHandler, BatchHandler, Handler
from consumerkit.policies.retry import Retry
from consumerkit.redaction.plain_words import shown_word
from consumerkit.redaction.text import redact

app = typer.Typer(no_args_is_help=True, help="Show when a retry policy tries again.")

Bounds = tuple[float, float]
_COLUMNS = ("attempt", "after a wait of", "since the first failure", "where", "if it fails")


@dataclass(frozen=True, slots=True)
class RetryStep:
    """One attempt.

    Attributes:
        attempt: The attempt's number, from 1.
        wait: The shortest and the longest wait before it; None before the first.
        elapsed: The least and most seconds from the first failure to its begin, if handling takes
            no time.
        where: How the message waits for the attempt: "in place" or "parked".
        then: "retry", "dead letter", or "either" where jitter decides whether the deadline allows
            another attempt.
    """

    attempt: int
    wait: Bounds | None
    elapsed: Bounds
    where: str
    then: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """The attempts that one policy of a handler makes.

    Attributes:
        handler: The handler's name.
        errors: The errors that meet the policy, in words.
        policy: The policy; None dead-letters at once.
        steps: The first attempts.
        complete: Whether these are all attempts.
    """

    handler: str
    errors: str
    policy: Retry | None
    steps: tuple[RetryStep, ...]
    complete: bool


@app.callback()
def _group() -> None:
    """Without this, the only command would be the whole of `consumerkit retry`."""


@app.command(
    epilog=examples(
        "retry preview shop.worker:worker",
        "retry preview shop.handlers:CreditAccount --limit 10",
    )
)
def preview(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            envvar=targets.VARIABLE,
            help="A handler's class, a handler, or a worker, as module:attribute.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="This handler only; can be repeated.", show_default=False),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", callback=storable, help="Show at most this many attempts of each policy.")
    ] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per policy.")] = False,
) -> None:
    """Print when a message that always fails is tried again.

    The table ends with the outcome. It shows waits and times from the shortest to the longest. It assumes that the
    handler itself takes no time.
    """
    declarations = _chosen(asyncio.run(_declarations(targets.given(target))), only or ())
    schedules = [one for declared in declarations for one in schedules_of(declared, limit)]
    if as_json:
        print_json([_as_object(one) for one in schedules])
        return
    for number, one in enumerate(schedules):
        if number:
            say("")
        _print(one)


def schedules_of(declared: Declaration, limit: int) -> list[Schedule]:
    """Return a schedule for each policy of a handler, each with at most `limit` attempts."""
    found = []
    for errors, policy in declared.retry.policies():
        if policy is None:
            first = RetryStep(1, None, (0.0, 0.0), "in place", "dead letter")
            found.append(Schedule(declared.name, errors, None, (first,), complete=True))
            continue
        steps = tuple(islice(steps_of(policy), limit + 1))
        found.append(Schedule(declared.name, errors, policy, steps[:limit], complete=len(steps) <= limit))
    return found


def steps_of(policy: Retry) -> Iterator[RetryStep]:
    """Yield the attempts of a policy without a mapping, if no error asks for its own wait.

    With waits of 0 and without `attempts`, they never end.
    """
    wait: Bounds | None = None
    low = high = 0.0
    for attempt in count(1):
        next_wait = policy.wait.bounds(attempt)
        then = _then(policy, attempt, low + next_wait[0], high + next_wait[1])
        where = "in place" if attempt <= policy.in_place else "parked"
        yield RetryStep(attempt, wait, (low, high), where, then)
        if then == "dead letter":
            return
        wait = next_wait
        # No attempt begins after the deadline.
        most = policy.deadline if policy.deadline is not None else float("inf")
        low, high = low + wait[0], min(high + wait[1], most)


def _then(policy: Retry, attempt: int, earliest: float, latest: float) -> str:
    if policy.attempts is not None and attempt >= policy.attempts:
        return "dead letter"
    if policy.deadline is None or latest <= policy.deadline:
        return "retry"
    return "either" if earliest <= policy.deadline else "dead letter"


async def _declarations(target: str) -> Sequence[Declaration]:
    found = targets.load(target)
    if isinstance(found, type) and issubclass(found, Handler | BatchHandler):
        return (declare(_made(found, target)),)
    if isinstance(found, Handler | BatchHandler):
        return (declare(found),)
    async with targets.opened(target) as worker:
        return worker.declarations


def _made(kind: type[Any], target: str) -> AnyHandler:
    """Return an instance of a handler class that needs no arguments."""
    way_out = f"give an instance instead, such as {target.partition(':')[0]}:handler"
    try:
        inspect.signature(kind).bind()
    except TypeError as error:
        raise ConfigurationError(f"target {target!r}: {kind.__name__}() takes arguments ({error}); {way_out}") from None
    try:
        made: AnyHandler = kind()
    except Exception as error:  # noqa: BLE001 - its text may quote a secret; it becomes one line
        raise ConfigurationError(
            f"target {target!r}: {kind.__name__}(): {type(error).__name__}: {redact(str(error))}"
        ) from None
    return made


def _chosen(declarations: Sequence[Declaration], only: Sequence[str]) -> Sequence[Declaration]:
    """Return the declarations of these names, in their own order."""
    names = [declared.name for declared in declarations]
    for name in only:
        if name not in names:
            raise ConfigurationError(f"--only {shown_word(name)} names no handler; there are {', '.join(names)}")
    return [declared for declared in declarations if not only or declared.name in only]


def _print(schedule: Schedule) -> None:
    policy = schedule.policy
    say(f"{schedule.handler}, errors: {schedule.errors}")
    rows = [
        (step.attempt, _seconds(step.wait), _seconds(step.elapsed), step.where, _in_words(step.then))
        for step in schedule.steps
    ]
    print_table(_COLUMNS, rows)
    if policy is not None and policy.deadline is not None:
        say(f"no attempt begins later than {_number(policy.deadline)} s after the first failure")
    if policy is not None and policy.retry_after is not None:
        say(f"where an error asks for a longer wait than these, it gets it, up to {_number(policy.retry_after_max)} s")
    if not schedule.complete:
        say("and so on; --limit N prints more")


def _in_words(then: str) -> str:
    return "retry or dead letter" if then == "either" else then


def _seconds(bounds: Bounds | None) -> str:
    if bounds is None:
        return ""
    low, high = map(_number, bounds)
    return f"{low} s" if low == high else f"{low} - {high} s"


def _number(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def _as_object(schedule: Schedule) -> dict[str, object]:
    policy = schedule.policy
    return {
        "handler": schedule.handler,
        "errors": schedule.errors,
        "attempts": 1 if policy is None else policy.attempts,
        "deadline": None if policy is None else policy.deadline,
        "retry_after_max": None if policy is None or policy.retry_after is None else policy.retry_after_max,
        "schedule": [
            {
                "attempt": step.attempt,
                "wait": step.wait,
                "elapsed": step.elapsed,
                "where": step.where,
                "then": step.then,
            }
            for step in schedule.steps
        ],
        "complete": schedule.complete,
    }
