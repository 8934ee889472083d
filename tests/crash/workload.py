"""What is sent: payments, a third of them resends and a few that fail, in slices over four partitions."""

import json
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from confluent_kafka import KafkaError, Producer
from confluent_kafka import Message as KafkaMessage

PARTITIONS = 4
ACCOUNTS = 200
# What becomes of each kind of payment that fails; all others take effect.
GIVEN_UP = {"reject": "rejected", "forever": "exhausted", "swallow": "exhausted"}
# The kind of one message in each slice, for each partition; "ok" where none fails.
FAILING = ("reject", "forever", "reject", "flaky")
SWALLOWING = ("swallow", "ok", "flaky", "swallow")
HANDING_OVER = ()


@dataclass(frozen=True)
class Sent:
    """One record to send; a resend is equal to its first copy but for the partition."""

    message_id: str
    account: str
    amount: int
    kind: str
    partition: int

    @property
    def value(self) -> bytes:
        return json.dumps({"account": self.account, "amount": self.amount, "kind": self.kind}).encode()


@dataclass
class Log:
    """What stands where: for each partition the message IDs in offset order; and the kind of each ID.

    `lock` is held while a slice is sent, so that a reader sees all or nothing of it.
    """

    ids: list[list[str]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    payments: dict[str, Sent] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def size(self) -> int:
        return sum(map(len, self.ids))

    def places(self) -> dict[str, set[tuple[int, int]]]:
        """For each ID where its copies stand, as (partition, offset)."""
        found: dict[str, set[tuple[int, int]]] = {}
        for partition, ids in enumerate(self.ids):
            for offset, message_id in enumerate(ids):
                found.setdefault(message_id, set()).add((partition, offset))
        return found


def slices(size: int, *, seed: int, kinds: Sequence[str] = FAILING) -> Iterator[list[Sent]]:
    """Yield slices of `size` records without end, a third of them resends.

    A resend follows its first copy at once, within the slice, or much later, in the same partition or another. In each
    slice one message of each partition is of the kind that `kinds` says.
    """
    chance = random.Random(seed)
    earlier: list[Sent] = []
    while True:
        firsts = [_first(len(earlier) + i, chance) for i in range(size - size // 3)]
        _spoil(firsts, kinds, chance)
        earlier += firsts
        yield _with_resends(firsts, earlier, size // 3, chance)


def crossed(size: int, *, seed: int) -> Iterator[list[Sent]]:
    """Yield slices without end in which all partitions hold the same messages, every other one in the opposite order.

    Transactions that claim in the order of the log deadlock on them.
    """
    chance = random.Random(seed)
    share = size // PARTITIONS
    for number in count():
        firsts = [_first(number * share + i, chance) for i in range(share)]
        yield [
            _moved(one, partition)
            for pair in zip(firsts, reversed(firsts), strict=True)
            for partition, one in enumerate((pair[0], pair[1], pair[1], pair[0]))
        ]


def _first(number: int, chance: random.Random) -> Sent:
    account = chance.randrange(ACCOUNTS)
    return Sent(f"m-{number:06d}", f"a-{account:03d}", chance.randrange(1, 10_000), "ok", account % PARTITIONS)


def _spoil(firsts: list[Sent], kinds: Sequence[str], chance: random.Random) -> None:
    for partition, kind in enumerate(kinds):
        index = chance.choice([i for i, one in enumerate(firsts) if one.partition == partition])
        one = firsts[index]
        firsts[index] = Sent(one.message_id, one.account, one.amount, kind, partition)


def _with_resends(firsts: list[Sent], earlier: list[Sent], count: int, chance: random.Random) -> list[Sent]:
    sent = list(firsts)
    for _ in range(count):
        one = chance.choice(firsts if chance.random() < 0.5 else earlier)
        copy = _moved(one, one.partition if chance.random() < 0.5 else chance.randrange(PARTITIONS))
        # after its first copy where that is in this slice, anywhere otherwise
        first = next((i for i, other in enumerate(sent) if other.message_id == one.message_id), -1)
        sent.insert(chance.randrange(first + 1, len(sent) + 1), copy)
    return sent


def _moved(one: Sent, partition: int) -> Sent:
    return Sent(one.message_id, one.account, one.amount, one.kind, partition)


class Feeder:
    """Sends slices, and writes down in the log where each record came to stand.

    A slice is one batch of records in each partition: it is sent by `flush` alone, however long filling it takes, so
    that what a consumer finds does not depend on the machine's speed.
    """

    def __init__(self, bootstrap: str, topic: str, log: Log) -> None:
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 60_000, "batch.size": 1_000_000}
        )
        self._topic = topic
        self._log = log

    def send(self, batch: list[Sent]) -> None:
        """Send a slice and await every acknowledgement."""
        with self._log.lock:
            for one in batch:
                self._log.payments.setdefault(one.message_id, one)
                self._producer.produce(
                    self._topic,
                    one.value,
                    key=one.account.encode(),
                    partition=one.partition,
                    headers={"message-id": one.message_id},
                    on_delivery=self._note(one),
                )
            if self._producer.flush(120):
                raise TimeoutError("the broker did not acknowledge a slice within 120 s")

    def _note(self, one: Sent):  # type: ignore[no-untyped-def] # its stubs know no type for callbacks
        def delivered(error: KafkaError | None, message: KafkaMessage) -> None:
            if error is not None:
                raise RuntimeError(f"the broker refused a record: {error}")
            ids = self._log.ids[one.partition]
            if message.offset() != len(ids):
                raise RuntimeError(f"offset {message.offset()} of partition {one.partition} after {len(ids) - 1}")
            ids.append(one.message_id)

        return delivered
