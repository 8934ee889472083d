"""Judges whether a run kept the promise, and whether it was hard enough to count."""

from collections import Counter
from dataclasses import dataclass, field

import psycopg
from confluent_kafka import Consumer, TopicPartition

from tests.crash.pool import Pool
from tests.crash.sampler import Watch
from tests.crash.workload import GIVEN_UP, PARTITIONS, Log

TYPICAL_GROUP = 50
FIRED = 3


@dataclass
class Verdict:
    """What a run showed.

    Attributes:
        problems: The promise broken.
        void: Why the run proves nothing.
        figures: For the record.
    """

    problems: list[str] = field(default_factory=list)
    void: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.figures.items()]
        lines += [f"BROKEN {problem}" for problem in self.problems[:20]]
        lines += [f"VOID {reason}" for reason in self.void[:20]]
        return "\n".join(lines)


def check_outcomes(verdict: Verdict, log: Log, dsn: str) -> None:
    """Compare effects and dead letters with what was sent, as multisets, and each with the ledger both ways."""
    with psycopg.connect(dsn) as connection:
        effects = connection.execute('SELECT message_id, partition, "offset", account, amount FROM effects').fetchall()
        dead = connection.execute("SELECT message_id, reason FROM consumerkit_dead_letters").fetchall()
        ledger = connection.execute("SELECT message_id, outcome FROM consumerkit_processed_messages").fetchall()
        found = connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    outcomes = Counter({("effect", one.message_id): 1 for one in log.payments.values() if one.kind not in GIVEN_UP})
    outcomes += Counter({("dead", one.message_id): 1 for one in log.payments.values() if one.kind in GIVEN_UP})
    real = Counter(("effect", row[0]) for row in effects) + Counter(("dead", row[0]) for row in dead)
    _compare(verdict, outcomes, real, "outcomes")
    kept = Counter(("effect" if outcome == 1 else "dead", message_id) for message_id, outcome in ledger)
    _compare(verdict, kept, real, "ledger rows")
    places = log.places()
    for message_id, partition, offset, account, amount in effects:
        sent = log.payments.get(message_id)
        if sent is None or (sent.account, sent.amount) != (account, amount):
            verdict.problems.append(f"the effect of {message_id} is not what was sent")
        if (partition, offset) not in places.get(message_id, ()):
            verdict.problems.append(f"the effect of {message_id} came from {partition}@{offset}, where it never stood")
    for message_id, reason in dead:
        if reason != GIVEN_UP.get(log.payments[message_id].kind):
            verdict.problems.append(f"{message_id} was dead-lettered as {reason}")
    if found is not None and found[0]:
        verdict.problems.append(f"{found[0]} deadlocks between sorted claims")
    verdict.figures |= {"records": log.size, "IDs": len(log.payments), "effects": len(effects), "dead": len(dead)}


def check_dead_letter_topic(verdict: Verdict, bootstrap: str, topic: str, dsn: str) -> None:
    """Every dead letter is in its topic, and nothing else is; more than once is as promised, and counted."""
    with psycopg.connect(dsn) as connection:
        rows = {row[0] for row in connection.execute("SELECT message_id FROM consumerkit_dead_letters")}
        waiting = connection.execute("SELECT count(*) FROM consumerkit_outbox_messages").fetchone()
    published = Counter(read_ids(bootstrap, topic))
    if waiting != (0,):
        verdict.problems.append(f"outbox rows left: {waiting}")
    verdict.problems += [f"dead letter {one} is not in its topic" for one in sorted(rows - set(published))[:5]]
    verdict.problems += [f"{one} is in the topic and no dead letter" for one in sorted(set(published) - rows)[:5]]
    verdict.figures["dead letters published"] = f"{published.total()} for {len(rows)} rows"


def read_ids(bootstrap: str, topic: str) -> list[str]:
    """Return the message IDs of all records of a topic, read to its end."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False})
    try:
        ends = {n: consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=60)[1] for n in range(PARTITIONS)}
        left = sum(ends.values())
        consumer.assign([TopicPartition(topic, n, 0) for n in range(PARTITIONS)])
        found: list[str] = []
        while len(found) < left:
            message = consumer.poll(60)
            if message is None:
                raise TimeoutError(f"{topic} could not be read to its end: {len(found)} of {left}")
            headers = dict(message.headers() or ())
            found.append(_text(headers["message-id"]))
        return found
    finally:
        consumer.close()


def check_watch(verdict: Verdict, watch: Watch) -> None:
    """No committed offset ever passed an unfinished message."""
    verdict.problems += watch.problems
    verdict.figures["samples"] = f"{watch.samples}, the offset moved in {watch.advances}"
    if watch.advances < 2 * PARTITIONS:
        verdict.void.append("the sampler saw offsets move too rarely")


def check_pool(verdict: Verdict, pool: Pool, named: tuple[str, ...], *, typical_group: int) -> None:
    """The kills took place, the processes saw rebalances, the batches were large, and no process ended by itself."""
    pool.check_ends()
    verdict.problems += pool.problems
    entries, fired = pool.journal.read(), pool.fired()
    verdict.void += [f"{name} fired {fired[name]} times" for name in named if fired[name] < FIRED]
    for member in pool.members:
        if entries.assignments[member.pid] < pool.settings.arm_after:
            verdict.void.append(f"{pool.name(member)} saw {entries.assignments[member.pid]} assignments")
    typical = typical_size(entries.groups)
    if typical < typical_group:
        verdict.void.append(f"the median message is in a group of {typical}")
    verdict.figures |= {
        "kills": dict(fired) | {"at random": sum(member.killed for member in pool.members)},
        "left": sum(member.asked_to_leave for member in pool.members),
        "processes": len(pool.members),
        "assignments": sum(entries.assignments.values()),
        "groups": f"{len(entries.groups)}, the median message in one of {typical}",
        "outcomes announced": dict(entries.outcomes),
    }


def typical_size(groups: list[int]) -> int:
    """Return the size of the group that the median message is in: a failure or a kill adds small ones around it."""
    left = sum(groups) / 2
    for size in sorted(groups):
        left -= size
        if left <= 0:
            return size
    return 0


def check_nothing_came_twice(verdict: Verdict, pool: Pool, log: Log) -> None:
    """Members that only join and leave hand over exactly: nothing finished is delivered again."""
    handled = pool.journal.read().outcomes.total()
    if handled != log.size:
        verdict.problems.append(f"{log.size} records were handled {handled} times, and none was killed")


def _compare(verdict: Verdict, expected: Counter[tuple[str, str]], real: Counter[tuple[str, str]], what: str) -> None:
    missing, extra = expected - real, real - expected
    verdict.problems += [f"{what}: {kind} of {one} is missing {n} times" for (kind, one), n in sorted(missing.items())]
    verdict.problems += [f"{what}: {kind} of {one} is there {n} times too many" for (kind, one), n in extra.items()]


def _text(value: str | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
