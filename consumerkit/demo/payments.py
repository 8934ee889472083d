"""The demo's messages, made from a seed: good payments, resends and poison, with the expected result of each."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from consumerkit.demo.shop import TOPIC
from consumerkit.outcome import Reason
from consumerkit.transports.base import Record

ACCOUNTS = tuple(f"account-{number:02}" for number in range(1, 51))
CLOSED = ("account-closed-1", "account-closed-2")
FEWEST, MOST = 100, 40_000  # the most is well below what the embedded broker holds

Dead = tuple[str, bytes]
Entry = tuple[str, str, int]


@dataclass(frozen=True)
class PaymentPlan:
    """The messages in order, and their expected result.

    Attributes:
        records: All messages, resends and poison included.
        resent: How many of them are copies of an earlier message.
        journal: Each good payment: ID, account, cents.
        dead: The expected dead letters: reason and value.
    """

    records: tuple[Record, ...]
    resent: int
    journal: Counter[Entry]
    dead: Counter[Dead]

    @property
    def distinct(self) -> int:
        """How many messages must become a journal entry or a dead letter."""
        return self.journal.total() + self.dead.total()

    @property
    def balances(self) -> Counter[str]:
        """The cents on each account at the end."""
        found: Counter[str] = Counter(dict.fromkeys(ACCOUNTS, 0))
        for _, account, cents in self.journal:
            found[account] += cents
        return found


def plan(payments: int, seed: int) -> PaymentPlan:
    """Plan payments: one in a hundred is poison, and a third is sent again later."""
    return _Planning(payments, random.Random(seed)).plan()


class _Planning:
    def __init__(self, payments: int, chance: random.Random) -> None:
        self._payments = payments
        self._chance = chance
        self._sent: list[tuple[float, Record]] = []  # each with its place in the order
        self._resent = 0
        self._journal: Counter[Entry] = Counter()
        self._dead: Counter[Dead] = Counter()

    def plan(self) -> PaymentPlan:
        """Return the plan."""
        kinds = self._kinds()
        for place in range(self._payments):
            kind = next(kinds) if place % 100 == 50 else self._good
            kind(place)
        records = tuple(record for _, record in sorted(self._sent, key=lambda sent: sent[0]))
        return PaymentPlan(records, self._resent, self._journal, self._dead)

    def _kinds(self) -> Iterator[Callable[[int], object]]:
        while True:
            yield from (self._broken, self._nameless, self._closed, self._unknown, self._other_amount)

    def _good(self, place: int) -> tuple[str, int]:
        account, cents = self._chance.choice(ACCOUNTS), self._cents()
        self._journal[f"pay-{place}", account, cents] += 1
        self._send(place, _record(f"pay-{place}", account, cents))
        return account, cents

    def _send(self, place: int, record: Record) -> None:
        """Send a record, and with a probability of one third send it again later."""
        self._sent.append((place, record))
        if self._chance.random() < 1 / 3:
            self._resent += 1
            self._sent.append((place + self._chance.uniform(0, self._payments / 10), record))

    def _broken(self, place: int) -> None:
        """JSON that ends too early."""
        record = _record(f"pay-{place}", self._chance.choice(ACCOUNTS), self._cents(), cut=7)
        self._expect(Reason.UNDECODABLE, record)
        self._sent.append((place, record))

    def _nameless(self, place: int) -> None:
        """A payment without a message ID: a copy looks like a second payment."""
        record = _record(f"pay-{place}", self._chance.choice(ACCOUNTS), self._cents())._replace(headers=())
        self._expect(Reason.UNIDENTIFIED, record)
        self._sent.append((place, record))

    def _closed(self, place: int) -> None:
        """A payment to an account that the handler rejects."""
        record = _record(f"pay-{place}", self._chance.choice(CLOSED), self._cents())
        self._expect(Reason.REJECTED, record)
        self._send(place, record)

    def _unknown(self, place: int) -> None:
        """A payment to an account for which the handler always fails."""
        record = _record(f"pay-{place}", f"account-unknown-{place}", self._cents())
        self._expect(Reason.EXHAUSTED, record)
        self._send(place, record)

    def _other_amount(self, place: int) -> None:
        """A good payment, and its ID again with another amount."""
        account, cents = self._good(place)
        record = _record(f"pay-{place}", account, cents + 1)
        self._expect(Reason.CONFLICT, record)
        self._sent.append((place + 20, record))

    def _expect(self, reason: Reason, record: Record) -> None:
        assert record.value is not None
        self._dead[reason.value, record.value] += 1

    def _cents(self) -> int:
        return self._chance.randint(1, 50_000)


def _record(payment: str, account: str, cents: int, *, cut: int = 0) -> Record:
    value = json.dumps({"payment_id": payment, "account_id": account, "cents": cents}).encode()
    return Record(TOPIC, account.encode(), value[: len(value) - cut], (("message-id", payment.encode()),))
