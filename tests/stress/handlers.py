"""The handlers under stress: what each message says is what it does."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any, Protocol

from sqlalchemy import BigInteger, Integer, Text, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from consumerkit import Context, Handler, Reject, header
from consumerkit.errors import Defer
from tests.stress.plan import Given

NAME, TOPIC, OUT, DEAD = "stress", "in", "out", "dead"


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """What a message did: append-only, and without a unique key of its ID, so that a second one shows."""

    __tablename__ = "stress_effects"

    sequence: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    message_id: Mapped[str] = mapped_column(Text)
    partition: Mapped[int] = mapped_column(Integer)
    offset: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer)
    worker: Mapped[str] = mapped_column(Text)


class Failure(Exception):
    """What a message fails with that is told to."""


class Stage(Protocol):
    """What the handlers need of the run."""

    healed: bool

    def called(self, worker: str, context: Context[Any], given: Given) -> None:
        """Take note of a call."""

    def waits(self, worker: str) -> bool:
        """Tell whether this worker is to stand still within its transaction."""
        ...

    def defers(self, given: Given) -> bool:
        """Tell whether this message is to defer once more."""
        ...


def value_of(given: Given) -> bytes:
    """Return a message's value, by which its handler knows what to do."""
    return json.dumps(given._replace(partition=0, first=True)).encode()


class _Stressed:
    """What all forms of the handler share."""

    name = NAME
    topic = TOPIC
    message_id = header("id")

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


def _place(context: Context[Any], what: str) -> bytes:
    message = context.message
    return json.dumps([what, context.message_id, message.partition, message.offset]).encode()


class Coroutine(_Stressed, Handler[bytes]):
    """With a coroutine."""

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
        self.end(given, context)


class Plain(_Stressed, Handler[bytes]):
    """With a plain function, in a thread."""

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
        self.end(given, context)


class TellingCoroutine(Coroutine):
    """Which announces duplicates."""

    async def on_duplicate(self, event: bytes, result: Any, context: Context) -> None:
        context.publish(OUT, key=context.message.key, value=_place(context, "again"))


class TellingPlain(Plain):
    """Which announces duplicates."""

    def on_duplicate(self, event: bytes, result: Any, context: Context[Session]) -> None:
        context.publish(OUT, key=context.message.key, value=_place(context, "again"))


FORMS = {
    ("coroutine", False): Coroutine,
    ("coroutine", True): TellingCoroutine,
    ("plain", False): Plain,
    ("plain", True): TellingPlain,
}
