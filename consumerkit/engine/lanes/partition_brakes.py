"""Slows down a partition with unreadable messages while all others go on.

Whether a message is undecodable, unidentified or oversized depends only on the message. So other partitions
neither pay for it nor wait for it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Final

from consumerkit import events
from consumerkit.events import Announcer
from consumerkit.message import Message, TopicPartition
from consumerkit.outcome import Reason
from consumerkit.policies.brake import Brake
from consumerkit.storage.dead_letters.letters import DeadMessage

UNREADABLE: Final = frozenset({Reason.UNDECODABLE, Reason.UNIDENTIFIED, Reason.OVERSIZED})


def is_unreadable(letter: DeadMessage) -> bool:
    """Tell whether a message is given up for its own form, not for a handler's failure."""
    return letter.reason in UNREADABLE


class _Partition:
    __slots__ = ("next_probe", "on", "probes", "tokens")

    def __init__(self) -> None:
        self.on = False
        self.tokens = 0.0
        self.probes = 0
        self.next_probe = 0.0


class PartitionBrakes:
    """The tokens of each partition; all of them share `Brake.allowance` at first.

    Args:
        policy: See `Brake`.
        announce: Announces when a partition is slowed down and when that ends.
    """

    def __init__(self, policy: Brake, announce: Announcer) -> None:
        self._policy = policy
        self._announce = announce
        self._shared = policy.allowance
        self._partitions: dict[tuple[str, int], _Partition] = {}

    def spend(self, message: Message) -> bool:
        """Ask for a dead letter; False means that the message is parked and its partition slows down."""
        one = self._partitions.setdefault((message.topic, message.partition), _Partition())
        if one.tokens >= 1:
            one.tokens -= 1
        elif self._shared:
            self._shared -= 1
        else:
            if not one.on:
                one.on, one.probes = True, 0
                self._failed(one)
                name = TopicPartition(message.topic, message.partition)
                self._announce(events.BrakeOn(wait=self.wait(message), partition=name))
            return False
        return True

    def refund(self, message: Message) -> None:
        """Take back the token of a dead letter that was not written."""
        one = self._partitions.setdefault((message.topic, message.partition), _Partition())
        one.tokens = min(float(self._policy.allowance), one.tokens + 1)

    def funded(self, dead: Iterable[DeadMessage], good: Iterable[Message]) -> dict[tuple[str, int], int]:
        """Return how many unreadable messages of each partition the good ones beside them pay for."""
        bad = Counter((one.message.topic, one.message.partition) for one in dead if is_unreadable(one))
        if not bad:
            return {}
        fine = Counter((one.topic, one.partition) for one in good)
        return {name: min(count, int(fine[name] * self._policy.earned)) for name, count in bad.items()}

    def settle(self, processed: Iterable[Message], unpaid: Iterable[Message]) -> None:
        """Enter a transaction: processed messages earn tokens, dead letters without a token cost them."""
        if not self._partitions:
            return
        ran = Counter((one.topic, one.partition) for one in processed)
        spent = Counter((one.topic, one.partition) for one in unpaid)
        for name, one in self._partitions.items():
            tokens = one.tokens + ran[name] * self._policy.earned - spent[name]
            one.tokens = min(float(self._policy.allowance), max(0.0, tokens))
            if ran[name] and one.on:
                one.on = False
                one.tokens = max(1.0, one.tokens)
                self._announce(events.BrakeOff(partition=TopicPartition(*name)))

    def slows(self, name: tuple[str, int]) -> bool:
        """Whether a partition's messages are tried one at a time."""
        one = self._partitions.get(name)
        return one is not None and one.on

    def admits(self, message: Message) -> bool:
        """Whether a message may run now; in a slowed partition it then is the probe."""
        one = self._partitions.get((message.topic, message.partition))
        if one is None or not one.on:
            return True
        if time.monotonic() < one.next_probe:
            return False
        self._failed(one)
        return True

    def _failed(self, one: _Partition) -> None:
        one.probes += 1
        one.next_probe = time.monotonic() + self._policy.probe.after(one.probes)

    def wait(self, message: Message) -> float:
        """Seconds until the next probe of a message's partition."""
        one = self._partitions.get((message.topic, message.partition))
        return 0.1 if one is None else max(0.1, one.next_probe - time.monotonic())
