"""The handlers of the stress: each message says what its handler does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

from sqlalchemy import BigInteger, Integer, Text, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from consumerkit import Context, Handler, Reject, Unavailable, header
from consumerkit.errors import Defer
from tests.stress.message_faults import GROUPS, PRESENT, REJECTED, SIZE_LIMIT, row_of, statements
from tests.stress.plan import Given

NAME, TOPIC, OUT, DEAD = "stress", "in", "out", "dead"


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """The effect of a message: append-only and without a unique key on its ID, so that a second one shows."""

    __tablename__ = "stress_effects"

    sequence: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    message_id: Mapped[str] = mapped_column(Text)
    partition: Mapped[int] = mapped_column(Integer)
    offset: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer)
    worker: Mapped[str] = mapped_column(Text)


class Failure(Exception):
    """The error of a message that must fail."""


class Stage(Protocol):
    """What the handlers need from the run."""

    healed: bool

    def called(self, worker: str, context: Context[Any], given: Given) -> None:
        """Record a call."""

    def waits(self, worker: str) -> bool:
        """Return whether this worker is to pause within its transaction."""
        ...

    def defers(self, given: Given) -> bool:
        """Return whether this message is to defer once more."""
        ...

    def errs(self, given: Given) -> bool:
        """Return whether this message is to meet its own fault once more."""
        ...

    def fires(self, given: Given) -> None:
        """Record that the fault of a message took effect."""

    def holds_row(self, number: int) -> AbstractContextManager[None]:
        """Lock a row in another session, for the `with` block; blocks."""
        ...


def value_of(given: Given) -> bytes | None:
    """Return a message's value, which tells its handler what to do."""
    if given.kind == "undecodable":
        return None
    value = json.dumps(given._replace(partition=0, first=True)).encode()
    return value.ljust(SIZE_LIMIT) if given.kind == "oversized" else value


def headers_of(given: Given) -> tuple[tuple[str, bytes], ...]:
    """Return a message's headers."""
    return () if given.kind == "unidentified" else (("id", given.id.encode()),)


class _Stressed:
    """What all kinds of handler share."""

    name = NAME
    topic = TOPIC
    message_id = header("id")
    size_limit: int | None = SIZE_LIMIT

    def __init__(self, stage: Stage, worker: str, *, pause: float, publishing: bool, **declared: Any) -> None:
        self.stage = stage
        self.worker = worker
        self.pause = pause
        self.publishing = publishing
        vars(self).update(declared)

    def begin(self, event: bytes, context: Context[Any]) -> Given:
        given = Given(*json.loads(event))
        self.stage.called(self.worker, context, given)
        message = context.message
        context.session.add(
            Effect(
                message_id=context.message_id,
                partition=message.partition,
                offset=message.offset,
                attempt=context.attempt,
                worker=self.worker,
            )
        )
        if self.publishing:
            context.publish(OUT, key=message.key, value=_place(context, "effect"))
        return given

    def end(self, given: Given, context: Context[Any]) -> None:
        if self.stage.healed:
            return
        if given.kind == "dead" or (given.kind == "fail" and context.attempt <= given.times):
            raise Failure(given.kind)
        if given.kind == "reject":
            raise Reject("as asked")
        if given.kind == "defer" and self.stage.defers(given):
            raise Defer(0.05, "not yet")
        if given.kind in REJECTED - GROUPS:
            self.stage.fires(given)
            raise Reject("as asked")

    def statements(self, given: Given, context: Context[Any]) -> tuple[str, ...]:
        """Run the statement that fails, or that fails only if it runs twice."""
        found = statements(given, server="sqlite" not in _driver(context))
        return found if found and (given.kind in PRESENT or self.stage.errs(given)) else ()

    @contextmanager
    def firing(self, given: Given) -> Iterator[None]:
        """Record what was refused."""
        try:
            yield
        except DBAPIError:
            self.stage.fires(given)
            raise
        if given.kind not in PRESENT:
            raise Unavailable(f"what brings the fault {given.kind!r}: it was not refused")

    def errors(self, given: Given) -> list[Exception]:
        """Raise the errors of a message's tasks as one group."""
        if given.kind not in GROUPS or not self.stage.errs(given):
            return []
        self.stage.fires(given)
        others: dict[str, list[Exception]] = {
            "group with a Reject": [Defer(9), Reject("as asked")],
            "group with a Defer": [Defer(0.05, "not yet")],
            "group with a lost connection": [Reject("no"), OperationalError("SELECT 1", None, ConnectionResetError())],
        }
        return [Failure(given.kind), *others.get(given.kind, [KeyError(given.id)])]


def _driver(context: Context[Any]) -> str:
    return str(context.session.get_bind().dialect.driver)


def _unsendable(context: Context[Any]) -> object:
    """A value that the driver refuses to send as text."""
    return 7 if _driver(context) == "asyncpg" else "a\x00b"


_CAST = text("SELECT CAST(:value AS text)")


async def _raising(error: Exception) -> None:
    raise error


def _place(context: Context[Any], what: str) -> bytes:
    message = context.message
    return json.dumps([what, context.message_id, message.partition, message.offset]).encode()


class Coroutine(_Stressed, Handler[bytes]):
    """A coroutine handler."""

    shares_transaction = True  # its waits have no effect

    async def handle(self, event: bytes, context: Context) -> None:
        given = self.begin(event, context)
        while self.stage.waits(self.worker):  # noqa: ASYNC110 - the same for threads
            await asyncio.sleep(0.01)
        if self.pause:
            await asyncio.sleep(self.pause)
        if given.kind == "swallow" and not self.stage.healed:
            await context.session.flush()
            with suppress(DBAPIError):
                await context.session.execute(text("SELECT 1 / 0"))
        await self.meet(given, context)
        self.end(given, context)

    async def meet(self, given: Given, context: Context) -> None:
        """Meet the fault that a message carries."""
        if asked := self.statements(given, context):
            holding = self.stage.holds_row(row_of(given)) if given.kind == "locked row" else nullcontext()
            await asyncio.to_thread(holding.__enter__)
            try:
                with self.firing(given):
                    for one in asked:
                        await context.session.execute(text(one))
            finally:
                await asyncio.to_thread(holding.__exit__, None, None, None)
        if given.kind == "refused by the client":
            with suppress(DBAPIError), self.firing(given):
                await context.session.execute(_CAST, {"value": _unsendable(context)})
        if errors := self.errors(given):
            async with asyncio.TaskGroup() as group:
                for error in errors:
                    group.create_task(_raising(error))


class Plain(_Stressed, Handler[bytes]):
    """A plain handler, in a thread."""

    def handle(self, event: bytes, context: Context[Session]) -> None:
        given = self.begin(event, context)
        while self.stage.waits(self.worker):
            time.sleep(0.01)
        if self.pause:
            time.sleep(self.pause)
        if given.kind == "swallow" and not self.stage.healed:
            context.session.flush()
            with suppress(DBAPIError):
                context.session.execute(text("SELECT 1 / 0"))
        self.meet(given, context)
        self.end(given, context)

    def meet(self, given: Given, context: Context[Session]) -> None:
        """Meet the fault that a message carries."""
        if asked := self.statements(given, context):
            holding = self.stage.holds_row(row_of(given)) if given.kind == "locked row" else nullcontext()
            with holding, self.firing(given):
                for one in asked:
                    context.session.execute(text(one))
        if given.kind == "refused by the client":
            with suppress(DBAPIError), self.firing(given):
                context.session.execute(_CAST, {"value": _unsendable(context)})
        if errors := self.errors(given):
            raise ExceptionGroup("", [errors[0], ExceptionGroup("", errors[1:])])


class TellingCoroutine(Coroutine):
    """A handler that announces duplicates."""

    async def on_duplicate(self, event: bytes, result: Any, context: Context) -> None:
        context.publish(OUT, key=context.message.key, value=_place(context, "again"))


class TellingPlain(Plain):
    """A handler that announces duplicates."""

    def on_duplicate(self, event: bytes, result: Any, context: Context[Session]) -> None:
        context.publish(OUT, key=context.message.key, value=_place(context, "again"))


FORMS = {
    ("coroutine", False): Coroutine,
    ("coroutine", True): TellingCoroutine,
    ("plain", False): Plain,
    ("plain", True): TellingPlain,
}
