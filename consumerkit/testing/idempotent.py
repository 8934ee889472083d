"""`assert_idempotent`, for plain tests and for coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final

from sqlalchemy import MetaData
from sqlalchemy.orm import Session

from consumerkit.handlers.handler import AnyHandler
from consumerkit.testing.case import Probe, ProofRequest
from consumerkit.testing.proof import IdempotenceReport, prove
from consumerkit.transports.base import Record

LIMIT: Final = 30.0
"""Seconds that one run may take by default."""


def assert_idempotent(
    handler: AnyHandler | Callable[[str], AnyHandler],
    messages: Sequence[Record],
    *,
    metadata: MetaData | None = None,
    setup: Callable[[Session], object] | None = None,
    effects: Probe | None = None,
    ignore: Collection[str] = (),
    dead: Collection[str] = (),
    within: float = LIMIT,
) -> IdempotenceReport:
    """Fail unless a handler leaves the same behind however its messages are delivered.

    The messages run on the real engine and ledger, with a broker in memory and a new SQLite file
    for each run. The first run delivers each message once, in a transaction of its own. The others
    deliver messages two and three times, to two workers, one of them given up, and with the keys
    in other orders; and they kill the worker at each place between fetching and committing offsets,
    and start it again. Each run must leave the same rows, effects, published messages and dead
    letters behind as the first one.

    Call it in a plain test. In a coroutine, await `assert_idempotent_async`.

    Args:
        handler: The handler; or a function that makes one for each worker, which is given the URL
            of the run's database. With a function, a worker that is started again has a new
            handler, as in a new process.
        messages: What is delivered; see `message`. Messages of one key stay in order.
        metadata: The handler's tables, which are created.
        setup: Adds the rows that the handler needs. It is called with a session at the beginning of
            each run, and may also reset a fake of another service.
        effects: Returns what has happened outside the database so far: a sequence with one element
            for each effect, or a Counter.
        ignore: Columns, as "table.column", and tables that are not compared: generated numbers, times.
        dead: The message IDs that are meant to become dead letters.
        within: Seconds that one run may take.

    Returns:
        What was run.

    Raises:
        AssertionError: A run differs from the first one; the text names the run, what was expected
            and found, and the way out. Or the first run did not end as expected.
        ConfigurationError: A declaration or an argument is wrong.
        RuntimeError: It was called in a coroutine.

    Example:
        >>> from sqlalchemy.orm import Session
        >>> from consumerkit import Context, Handler, header
        >>> class Mail(Handler[bytes]):
        ...     name, topic, message_id = "mail", "orders", header("message-id")
        ...     sent: list[str] = []
        ...
        ...     def handle(self, event: bytes, context: Context[Session]) -> None:
        ...         self.sent.append(context.message_id)  # outside the database, so not rolled back
        >>> from consumerkit.testing import message
        >>> assert_idempotent(Mail(), [message(b"", id="o-1")], effects=lambda: Mail.sent)
        Traceback (most recent call last):
            ...
        AssertionError: handler 'mail' is not idempotent: ...
    """
    __tracebackhide__ = True
    if _is_in_loop():
        raise RuntimeError("assert_idempotent was called in a coroutine; await assert_idempotent_async(...) there")
    asked = ProofRequest(handler, messages, metadata, setup, effects, ignore, dead, within)
    return _reported(asyncio.run(prove(asked)))


async def assert_idempotent_async(
    handler: AnyHandler | Callable[[str], AnyHandler],
    messages: Sequence[Record],
    *,
    metadata: MetaData | None = None,
    setup: Callable[[Session], object] | None = None,
    effects: Probe | None = None,
    ignore: Collection[str] = (),
    dead: Collection[str] = (),
    within: float = LIMIT,
) -> IdempotenceReport:
    """Do what `assert_idempotent` does, in the running event loop: for handlers whose clients belong to it."""
    __tracebackhide__ = True
    return _reported(await prove(ProofRequest(handler, messages, metadata, setup, effects, ignore, dead, within)))


def _reported(found: IdempotenceReport | str) -> IdempotenceReport:
    __tracebackhide__ = True
    if isinstance(found, IdempotenceReport):
        return found
    raise AssertionError(found)


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
