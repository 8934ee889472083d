"""Every error of consumerkit.

ConsumerkitError
├── ConfigurationError      a misdeclaration, found when the worker is built
├── StartError              a missing topic, table or right, found when the worker starts
├── Reject                  raised by a handler: dead-letters this message at once
│   └── StepInDoubt         it is unknown whether a step was done, and it says "dead-letter"
├── Defer                   raised by a handler: runs this message again later, without an attempt
│   └── StepUnderWay        a step has begun elsewhere, and its deadline has not passed
├── AlreadyDone             raised by a step: the other side has done it before, with this result
├── StepChanged             a step was run for a message before, with other arguments
├── Undecodable             raised by a codec: the message is at fault
├── Unavailable             raised by a codec or a transport: the infrastructure is at fault; no attempt counts
│   └── Rebalancing         a group takes no commit while its members change
├── Unsatisfied             recorded where a handler's result is a failure by `Retry(on_result=...)`
├── ResultNotKept           a handler returned a value that cannot be kept as JSON
├── TransactionMisused      a handler ended consumerkit's transaction or hid its failure
├── InProgress              another transaction holds a key and did not end in time
├── KeyReused               a key was used again with another fingerprint
├── AwaitForgotten          a handler called its session without await
├── SessionUnfit            the session cannot hold one transaction: it began a second one, or does not commit
├── SessionOver             a session or context was used after the handler had returned
├── CommitUnknown           COMMIT was sent and not answered in time
├── TablesReplaced          the tables are not those that the worker started with
├── PayloadSealed           a stored payload is sealed, and cannot be unsealed here
├── Fenced                  another worker has taken a partition over, or may have
│   └── TransactionsLost    the database has lost acknowledged transactions
└── PartitionUnusable       the position is outside the log, or a batch cannot be read
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Final

_log = logging.getLogger(__name__)

LONGEST_WAIT: Final = 315_576_000.0  # ten years; a longer wait is a mistake, such as a value in milliseconds


class ConsumerkitError(Exception):
    """The root of all errors that consumerkit raises; these and your subclasses can be pickled and copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        # By default Python calls the class with `args`, which may differ from the parameters of
        # `__init__`.
        return _again, (type(self), self.args), self.__dict__ or None


def _again(kind: type[ConsumerkitError], args: tuple[Any, ...]) -> ConsumerkitError:
    made = kind.__new__(kind)
    made.args = args
    return made


class ConfigurationError(ConsumerkitError):
    """A declaration or setting is wrong; the message names the place, the value and the way out."""


class StartError(ConsumerkitError):
    """Something outside the code is missing: a topic, a table, a right."""


class Reject(ConsumerkitError):
    """Raised by a handler to send its message to the dead letters at once, without a retry.

    Args:
        why: The reason for people to read. It is stored and sent in a header, so keep payloads out of it. Without one
            the dead letter says `no reason given`, and a warning is logged once.
        of: In a `BatchHandler`, the `Received` event to blame.

    Example:
        >>> raise Reject("account is closed")
        Traceback (most recent call last):
        consumerkit.errors.Reject: account is closed
    """

    def __init__(self, why: str | None = None, *, of: Any = None) -> None:
        super().__init__("no reason given" if why is None else why)
        self.of = of
        if why is None:
            _warn_of_no_reason()


@cache
def _warn_of_no_reason() -> None:
    _log.warning('a handler raises Reject without a reason, so its dead letters have none; write: raise Reject("...")')


class Defer(ConsumerkitError):
    """Raised by a handler to run its message again later, without counting an attempt.

    Args:
        seconds: The wait, on the database's clock; ten years at most.
        why: The reason for people to read; it is stored, so keep payloads out of it.

    Raises:
        ValueError: `seconds` is not above 0, or is more than ten years.

    Example:
        >>> raise Defer(60, "the shop is closed")
        Traceback (most recent call last):
        consumerkit.errors.Defer: the shop is closed
    """

    def __init__(self, seconds: float, why: str = "deferred") -> None:
        super().__init__(why)
        if not seconds > 0:
            raise ValueError(f"Defer({seconds}): give seconds > 0")
        if seconds > LONGEST_WAIT:
            raise ValueError(f"Defer({seconds}): give at most {LONGEST_WAIT:.0f} seconds (ten years)")
        self.seconds = float(seconds)


class AlreadyDone(ConsumerkitError):
    """Raised by a step, or returned by its `confirm`: the other side has done the step before, under the same key.

    Args:
        result: The step's result at that time; it is kept as the result.

    Example:
        >>> AlreadyDone("ch_17").result
        'ch_17'
    """

    def __init__(self, result: Any = None) -> None:
        super().__init__("the other side has done this before")
        self.result = result


class StepInDoubt(Reject):
    """A step has begun and its result was not kept: it may have been done, and the other side cannot be asked."""


class StepUnderWay(Defer):
    """A step began elsewhere or before a crash, and its deadline has not passed: the message waits until then."""


class StepChanged(ConsumerkitError):
    """A step ran for this message before with other arguments: its result does not belong to this run."""


class Undecodable(ConsumerkitError):
    """A codec can never read this message: the message is dead-lettered."""


class Unavailable(ConsumerkitError):
    """Something that decoding or sending needs is down: the work is tried again later, and no attempt counts."""


class Rebalancing(Unavailable):
    """The broker refused a commit because the group's members change: an ordinary part of a rebalance, no trouble."""


class Unsatisfied(ConsumerkitError):
    """A handler returned a value that its `Retry(on_result=...)` counts as a failure; its changes are rolled back."""


class ResultNotKept(ConsumerkitError, TypeError):
    """A handler returned a value that JSON cannot hold, so it cannot be kept for duplicates: the message fails."""


class TransactionMisused(ConsumerkitError):
    """A handler committed, rolled back or broke the transaction that consumerkit owns."""


class InProgress(ConsumerkitError):
    """Another transaction holds a key of a job or a request, and did not end in time: nothing was done."""


class KeyReused(ConsumerkitError):
    """A key of a job or a request was used before for something else: nothing was done."""


class AwaitForgotten(ConsumerkitError):
    """A handler called its session without awaiting the call: the message fails, since its change is missing."""


class SessionUnfit(ConsumerkitError):
    """The session given as `database` cannot hold claims and changes in one transaction: the handler pauses."""


class SessionOver(ConsumerkitError):
    """Code that a handler started used its session or context after the handler had returned."""


class CommitUnknown(ConsumerkitError):
    """COMMIT was sent and no answer came in time: the transaction may or may not be durable."""


class TablesReplaced(ConsumerkitError):
    """consumerkit's tables are not those that the worker started with: they were restored or recreated meantime."""


class PayloadSealed(ConsumerkitError):
    """A stored payload is sealed, and cannot be unsealed here."""


class Fenced(ConsumerkitError):
    """Another worker has taken over a partition of this transaction, so the transaction is rolled back."""


class TransactionsLost(Fenced):
    """The database has lost commits: a standby that lagged took over, or a backup was restored."""


class PartitionUnusable(ConsumerkitError):
    """A partition cannot be read from its position: the position is outside the log, or the batch is broken."""
