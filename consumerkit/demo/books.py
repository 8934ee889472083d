"""Audits the demo with plain SQL and the broker's log, independently of consumerkit's own statements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from consumerkit.demo.broker import DemoLog
from consumerkit.demo.payments import PaymentPlan
from consumerkit.demo.scene import DemoScene
from consumerkit.demo.shop import DEAD_LETTER_TOPIC, TOPIC


@dataclass(frozen=True)
class Check:
    """One line of the audit.

    Attributes:
        holds: Whether the check succeeded.
        what: What was checked.
        found: What was found.
    """

    holds: bool
    what: str
    found: str


def audit(scene: DemoScene, plan: PaymentPlan, log: DemoLog) -> Iterator[Check]:
    """Compare the result with the plan."""
    yield from _log(plan, log)
    yield _journal(scene, plan)
    yield from _balances(scene, plan)
    yield from _dead(scene, plan, log)


def _log(plan: PaymentPlan, log: DemoLog) -> Iterator[Check]:
    partitions = log.partitions(TOPIC)
    purged = sum(one.first for one in partitions)
    held = sum(one.end - one.first for one in partitions)
    yield Check(
        purged == 0 and held == len(plan.records),
        "the broker kept every message",
        f"{held:,} of {len(plan.records):,} in {len(partitions)} partitions, {purged:,} purged",
    )
    behind = sum(one.end - one.committed for one in partitions)
    yield Check(behind == 0, "every message was acknowledged", f"{behind:,} left behind the committed offsets")


def _journal(scene: DemoScene, plan: PaymentPlan) -> Check:
    found = Counter(tuple(row) for row in scene.query("SELECT payment_id, account_id, cents FROM journal"))
    missing, extra = (plan.journal - found).total(), (found - plan.journal).total()
    return Check(
        found == plan.journal,
        "each good payment is in the journal once",
        f"{found.total():,} entries, {missing:,} missing, {extra:,} too many; {plan.resent:,} copies left no trace",
    )


def _balances(scene: DemoScene, plan: PaymentPlan) -> Iterator[Check]:
    found = Counter(dict(scene.query("SELECT id, balance FROM accounts")))
    expected = plan.balances + Counter()
    wrong = sorted(name for name in {*found, *expected} if found[name] != expected[name])
    yield Check(
        not wrong,
        "each account has its balance",
        f"{len(found):,} accounts, {len(wrong):,} wrong{': ' if wrong else ''}{', '.join(wrong[:3])}",
    )
    total, due = found.total(), expected.total()
    journal = scene.number("SELECT coalesce(sum(cents), 0) FROM journal")
    yield Check(
        total == due == journal,
        "the sum is right to the cent",
        f"{_money(total)} on the accounts, {_money(journal)} in the journal, {_money(due)} paid",
    )


def _dead(scene: DemoScene, plan: PaymentPlan, log: DemoLog) -> Iterator[Check]:
    rows = scene.query("SELECT reason, value FROM consumerkit_dead_letters")
    found = Counter((reason, bytes(value or b"")) for reason, value in rows)
    missing, extra = (plan.dead - found).total(), (found - plan.dead).total()
    yield Check(
        found == plan.dead,
        "each poison message is a dead letter",
        f"{found.total():,} dead letters, {missing:,} missing, {extra:,} too many",
    )
    published = {message.value() for message in log.read(DEAD_LETTER_TOPIC)}
    unpublished = sum(value not in published for _, value in found)
    waiting = scene.number("SELECT count(*) FROM consumerkit_outbox_messages")
    yield Check(
        unpublished == 0 and waiting == 0,
        f"each dead letter is on the topic {DEAD_LETTER_TOPIC}",
        f"{unpublished:,} missing, {waiting:,} still in the outbox",
    )


def _money(cents: int) -> str:
    return f"{cents // 100:,}.{cents % 100:02}"


def killed(done: int, wanted: int) -> Check:
    """Return the check that as many processes were killed at work as planned."""
    return Check(done == wanted, "workers were killed in mid-transaction", f"{done} of {wanted}")


@dataclass(frozen=True)
class DeadLetters:
    """The dead letters of one reason: how many, and the error of one of them."""

    reason: str
    count: int
    example: str


def dead_letters(scene: DemoScene) -> list[DeadLetters]:
    """Return the dead letters by reason."""
    sql = (
        "SELECT reason, count(*), min(error_type || ': ' || error) FROM consumerkit_dead_letters "
        "GROUP BY reason ORDER BY count(*) DESC, reason"
    )
    return [DeadLetters(*row) for row in scene.query(sql)]
