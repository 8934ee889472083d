"""Carries out all runs of a handler, and compares each with the clean one."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.declaration import Declaration, declare
from consumerkit.testing import plans
from consumerkit.testing.case import Case, Plan, ProofRequest, Result, maker_of
from consumerkit.testing.compare import differences
from consumerkit.testing.run import CaseRun, Unfinished
from consumerkit.testing.run_file import RunFile
from consumerkit.testing.verdict import refused, verdict, with_hint
from consumerkit.transports.base import Record

_UNSETTLED: Final = frozenset({"step_started", "step_called"})


@dataclass(frozen=True)
class IdempotenceReport:
    """What `assert_idempotent` has run.

    Attributes:
        runs: The runs, in words, without the clean one.
        killed: The places at which the worker was killed, such as "before_commit". A place with
            "(visit 2)" was passed once before.
        not_reached: Places that the worker did not come to in the run that was to end there.
        left_out: Places at which it was not killed, since a step says `in_doubt="dead-letter"`:
            a kill there makes a dead letter, as declared.
    """

    runs: tuple[str, ...]
    killed: tuple[str, ...]
    not_reached: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


async def prove(asked: ProofRequest) -> IdempotenceReport | str:
    """Carry out all runs; return what was run, or the text that says what is wrong.

    Raises:
        ConfigurationError: A declaration or an argument is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="consumerkit-testing-", ignore_cleanup_errors=True) as directory, _quiet():
        make = maker_of(asked.handler)
        ignore = (asked.ignore,) if isinstance(asked.ignore, str) else tuple(asked.ignore)
        declared = declare(make(f"sqlite:///{directory}/none.db"))
        file = RunFile(Path(directory), is_async=declared.is_async)
        case = Case(make, file, asked.setup, asked.effects, asked.within)
        try:
            await file.make(asked.metadata)
            proof = _Proof(case, declared, _addressed(declared, asked.messages), ignore)
            return await proof.run(asked.dead)
        except Unfinished as error:
            return with_hint(f"handler {declared.name!r}: {error}")
        finally:
            await file.close()


class _Proof:
    """Carries out all runs, and compares each with the clean one."""

    def __init__(self, case: Case, declared: Declaration, records: plans.Records, ignore: tuple[str, ...]) -> None:
        self._case = case
        self._declared = declared
        self._records = records
        self._ignore = ignore
        self._results: list[Result] = []

    async def run(self, dead: Collection[str]) -> IdempotenceReport | str:
        name, records = self._declared.name, self._records
        clean = await self._result(plans.clean(records))
        _check_ignored(self._ignore, self._case.file)
        if wrong := refused(name, clean, dead):
            return wrong
        batched = await self._result(plans.batched(records))
        for plan in plans.delivered_again(records, self._declared.ordering):
            await self._result(plan)
        kills = plans.killed(records, batched.visits)
        for plan in kills:
            if plan.kill is not None and plan.kill.at not in self._left_out:
                await self._result(plan)
        others = self._results[1:]
        found = {one.plan.name: list(differences(clean, one)) for one in others}
        if differ := {run: some for run, some in found.items() if some}:
            return verdict(name, differ, len(others))
        return IdempotenceReport(
            runs=tuple(found),
            killed=self._places(was_killed=True),
            not_reached=self._places(was_killed=False),
            left_out=tuple(str(one.kill) for one in kills if one.kill is not None and one.kill.at in self._left_out),
        )

    async def _result(self, plan: Plan) -> Result:
        result = await CaseRun(self._case, plan, len(self._results), self._ignore).carry_out()
        self._results.append(result)
        return result

    def _places(self, *, was_killed: bool) -> tuple[str, ...]:
        found = [one for one in self._results if one.plan.kill is not None and one.was_killed is was_killed]
        return tuple(str(one.plan.kill) for one in found)

    @property
    def _left_out(self) -> frozenset[str]:
        """The places where a kill makes a dead letter, as the handler declares."""
        steps = self._declared.steps.values()
        doubted = any(one.in_doubt == "dead-letter" and one.asks is None for one in steps)
        return _UNSETTLED if doubted else frozenset()


def _addressed(declared: Declaration, messages: Sequence[Record]) -> plans.Records:
    """Return the messages with the handler's topic where they have none.

    Raises:
        ConfigurationError: There is none, or a message's topic is not among the handler's.
    """
    if not messages:
        raise ConfigurationError("assert_idempotent(messages=[]): give at least one message")
    for record in messages:
        if not record.topic and len(declared.topics) > 1:
            raise ConfigurationError(
                f"handler {declared.name!r} reads {', '.join(declared.topics)}: give each message its topic, as in "
                f"message(..., topic={declared.topics[0]!r})"
            )
        if record.topic and record.topic not in declared.topics:
            raise ConfigurationError(
                f"handler {declared.name!r} does not read topic {record.topic!r}; it reads {', '.join(declared.topics)}"
            )
    return tuple(record if record.topic else record._replace(topic=declared.topics[0]) for record in messages)


def _check_ignored(ignore: Sequence[str], file: RunFile) -> None:
    known = file.columns()  # those of the metadata, and those that setup has made
    for name in ignore:
        if name not in known:
            raise ConfigurationError(
                f"assert_idempotent(ignore=...): there is no table or column {name!r}; name a table, or a column as in "
                "'orders.created_at'"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log lines about killed workers and their connections out of the test's output."""
    loggers = [logging.getLogger(name) for name in ("consumerkit", "sqlalchemy.pool")]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)
