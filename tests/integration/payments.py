"""Workers on the broker in memory and a real PostgreSQL: the parking lot without the waits of a real group."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from sqlalchemy.orm import Session

from consumerkit import (
    BatchContext,
    BatchHandler,
    Context,
    DeadLetter,
    Handler,
    Identity,
    Message,
    Received,
    Reject,
    Retry,
    fixed,
    header,
)
from consumerkit.errors import Defer
from consumerkit.handlers.handler import AnyHandler
from consumerkit.transports.memory import Memory, MemoryBroker
from consumerkit.worker import Worker
from tests.crash.model import Base, Payment
from tests.integration.kafka_stage import effect
from tests.integration.postgres_stage import PostgresStage
from tests.services import PostgresServer

TOPIC = "t"
DEAD = "t.dlq"


class ProviderDown(Exception):
    """The error that the tests' handlers raise."""


class Call(NamedTuple):
    """One invocation of a handler."""

    attempt: int
    moment: float


class _Trial:
    """What all forms of the handler share.

    A payment's kind says what becomes of it: `ok`; `fail:N`, for the first N attempts; `forever`; `reject`, or
    `reject:N` after N failures; `defer:S:N`, for S seconds and N times.
    """

    name = "credit"
    topic: str = TOPIC
    message_id: Identity = header("message-id")
    retry = Retry(attempts=9, wait=fixed(0.3))

    def __init__(self, **declarations: Any) -> None:
        self.dead_letter: DeadLetter | None = DeadLetter(DEAD)
        self.calls: defaultdict[str, list[Call]] = defaultdict(list)
        self.healed = False
        vars(self).update(declarations)

    def attempts(self, number: int | str) -> list[int]:
        """The attempts of a payment, in order; the first may be there twice, since it may have failed in a group."""
        return [call.attempt for call in self.calls[f"p-{number}"]]

    def decide(self, kind: str, message_id: str, attempt: int) -> None:
        """Raise what the kind says."""
        self.calls[message_id].append(Call(attempt, time.monotonic()))
        what, *numbers = kind.split(":")
        if what == "forever" and not self.healed:
            raise ProviderDown("for ever")
        if what == "fail" and attempt <= int(numbers[0]):
            raise ProviderDown(f"attempt {attempt}")
        if what == "reject" and numbers and attempt <= int(numbers[0]):
            raise ProviderDown("and then rejected")
        if what == "reject":
            raise Reject("as asked")
        if what == "defer" and len(self.calls[message_id]) <= int(numbers[1]):
            raise Defer(float(numbers[0]), "not yet")


class Trial(_Trial, Handler[Payment]):
    """With a coroutine."""

    shares_transaction = True  # what tests wait for has no effect

    async def handle(self, event: Payment, context: Context) -> None:
        context.session.add(effect(event, context))
        self.decide(event.kind, context.message_id, context.attempt)


class PlainTrial(_Trial, Handler[Payment]):
    """With a plain function, in a thread."""

    def handle(self, event: Payment, context: Context[Session]) -> None:
        context.session.add(effect(event, context))
        self.decide(event.kind, context.message_id, context.attempt)


class BatchTrial(_Trial, BatchHandler[Payment]):
    """For a batch at once."""

    async def handle_batch(self, events: Sequence[Received[Payment]], context: BatchContext) -> None:
        for one in events:
            context.session.add(effect(one.event, cast(Context[Any], one)))
        for one in events:
            self.decide(one.event.kind, one.message_id, one.attempt)


class PaymentStage(PostgresStage):
    """A broker in memory with a topic and its dead letters' topic, and a PostgreSQL database with all tables."""

    tables_of_handlers = Base.metadata

    def __init__(self, postgres: PostgresServer, database: str, partitions: int = 2) -> None:
        self.postgres = postgres
        self.database = database
        self.broker = MemoryBroker(topics={TOPIC: partitions, DEAD: partitions})

    def send(
        self,
        number: int | str,
        kind: str = "ok",
        *,
        key: bytes | None = b"k",
        partition: int = 0,
        headers: tuple[tuple[str, bytes | None], ...] = (),
        value: bytes | None = None,
    ) -> Message:
        """Append a payment; its ID is `p-<number>`."""
        body = Payment(account=(key or b"none").decode(), amount=1, kind=kind).model_dump_json().encode()
        mark = ("message-id", f"p-{number}".encode())
        return self.broker.append(TOPIC, value or body, key=key, headers=(mark, *headers), partition=partition)

    def make(self, *handlers: AnyHandler, **settings: Any) -> Worker:
        settings.setdefault("database", self.url)
        return Worker(kafka=Memory(self.broker), handlers=handlers, **settings)

    def effects(self) -> list[str]:
        """The numbers of the payments that took effect, in the order of their inserts."""
        return [row["message_id"][2:] for row in self.rows("SELECT message_id FROM effects ORDER BY sequence")]

    def parked(self) -> list[dict[str, Any]]:
        return self.rows(
            "SELECT *, extract(epoch FROM due_at - clock_timestamp())::float AS wait "
            "FROM consumerkit_parked_messages ORDER BY id"
        )

    def dead(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM consumerkit_dead_letters ORDER BY id")

    def published(self) -> list[Message]:
        """What came to the dead letters' topic."""
        return self.broker.records(DEAD)

    def outcome(self, number: int | str) -> int | None:
        found = self.rows(f"SELECT outcome FROM consumerkit_processed_messages WHERE message_id = 'p-{number}'")
        return found[0]["outcome"] if found else None

    def has(self, *numbers: int | str) -> Callable[[], bool]:
        """The condition that these payments took effect."""
        wanted = {str(number) for number in numbers}
        return lambda: wanted <= set(self.effects())

    def holds(self, parked: int, dead: int = 0) -> Callable[[], bool]:
        """The condition that so many messages are parked and dead."""
        return lambda: len(self.parked()) == parked and len(self.dead()) == dead

    def forget_offsets(self) -> None:
        """Lose the committed offsets, as after a death in between: everything is delivered again."""
        self.broker.group("credit").offsets.clear()
        self.execute("UPDATE consumerkit_partition_progress SET mark = 0")

    def committed(self) -> int:
        """The sum of the committed offsets."""
        return sum(self.broker.committed("credit").values())

    def check(self) -> None:
        """Each claim has its effect, its dead letter or its place in the lot."""
        ledger = self.rows("SELECT message_id, outcome FROM consumerkit_processed_messages")
        kinds = {n: sorted(row["message_id"] for row in ledger if row["outcome"] == n) for n in (1, 2, 3)}
        assert sorted(f"p-{number}" for number in self.effects()) == kinds[1]
        assert sorted(row["message_id"] for row in self.parked() if row["digest"] is not None) == kinds[2]
        assert sorted(row["message_id"] for row in self.dead() if row["digest"] is not None) == kinds[3]
