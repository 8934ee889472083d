"""Lets lanes run freely; while the brake is on, lets one message run at a time, at growing intervals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from consumerkit import events
from consumerkit.concurrency import wait_for_first
from consumerkit.engine.lanes.partition_brakes import PartitionBrakes, is_unreadable
from consumerkit.engine.transaction.receipt import Receipt
from consumerkit.events import Announcer
from consumerkit.message import Message
from consumerkit.policies.brake import Brake, BrakeState
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.origins import Origin, origin

REMEMBERED: Final = 20_000


class BrakeGate:
    """The brake of one engine, for all of its lanes.

    Args:
        policy: See `Brake`.
        announce: Announces that the brake goes on or off.
    """

    def __init__(self, policy: Brake, announce: Announcer) -> None:
        self._announce = announce
        self._state = BrakeState(policy)
        self.partitions = PartitionBrakes(policy, announce)
        self._released = asyncio.Event()
        self._prober: object | None = None
        self._successes = 0
        self._failed: dict[Origin, int] = {}
        self._holders: set[object] = set()
        self._turns: dict[object, int] = {}
        self._waiting: list[object] = []
        self._braked = False
        self._suspended: str | None = None

    def hold(self, holder: object) -> None:
        """Keep lanes that do not hold the handler from beginning; each holder tries again by itself."""
        self._holders.add(holder)
        self._released.clear()

    def let_go(self, holder: object) -> None:
        """End a hold, if there is one."""
        if holder in self._holders:
            self._holders.remove(holder)
            if not self._holders:
                self._released.set()
                self._announce(events.HandlerResumed())

    def suspend(self, kind: str, error: str) -> None:
        """Pause the handler because different messages fail in one way; it probes as under the brake.

        Args:
            kind: How they fail.
            error: The text for a person, with the remedy.
        """
        self._state.put_on(time.monotonic())
        self._released.clear()
        if self._suspended != kind:
            self._suspended = kind
            self._announce(events.HandlerPaused(error=error, wait=self.wait))

    @property
    def successes(self) -> int:
        """How many messages were processed; duplicates do not count."""
        return self._successes

    @property
    def braking(self) -> bool:
        """Whether the brake is on."""
        return self._state.on

    async def enter(self, lane: object, interrupted: asyncio.Event, holder: object = None) -> bool:
        """Wait for this lane's turn; return False if the caller must ask again."""
        state = self._state
        if self._holders and holder not in self._holders:
            await self._wait(interrupted, 1.0)
            return False
        if not state.on:
            return True
        wait = state.next_probe - time.monotonic()
        if wait <= 0 and self._prober is None and not self._is_early(lane):
            self._prober = lane
            self._turns[lane] = max(self._turns.values(), default=0) + 1
            # It counts as failed until it succeeds, so that `wait` gives the time of the next probe.
            state.failed_probe(time.monotonic())
            return True
        self._waiting.append(lane)
        try:
            await self._wait(interrupted, max(0.05, wait))
        finally:
            self._waiting.remove(lane)
        return False

    def _is_early(self, lane: object) -> bool:
        """Tell whether a waiting lane probed longer ago; a lane with only poison must not always probe."""
        turn = self._turns.get(lane, 0)
        return any(self._turns.get(other, 0) < turn for other in self._waiting)

    async def _wait(self, interrupted: asyncio.Event, seconds: float) -> None:
        await wait_for_first(self._released, interrupted, within=seconds)
        interrupted.clear()

    def leave(self, lane: object) -> None:
        """End a lane's turn."""
        if self._prober is lane:
            self._prober = None
            self._state.wait_again(time.monotonic())

    def funded(self, dead: int, good: int) -> int:
        """See `BrakeState.funded`."""
        return self._state.funded(dead, good)

    def spend(self) -> bool:
        """Ask for a dead letter; False means that the message stays in the parking lot."""
        return self._asked(self._state.spend)

    def spend_for(self, letter: DeadMessage) -> bool:
        """Ask for the dead letter of a message that cannot be handled; False as for `spend`."""
        return self.partitions.spend(letter.message) if is_unreadable(letter) else self.spend()

    def wait_for(self, letter: DeadMessage) -> float:
        """Seconds until the next probe of the brake that forbids a dead letter."""
        return self.partitions.wait(letter.message) if is_unreadable(letter) else self.wait

    def reject(self, message: Message) -> bool:
        """Ask for the dead letter of a Reject, which costs no token; False as for `spend`."""
        key = origin(message) if message.key is None else (message.topic, message.partition, message.key)
        return self._asked(partial(self._state.reject, key))

    def _asked(self, ask: Callable[[float], bool]) -> bool:
        allowed = ask(time.monotonic())
        if not allowed and not self._braked:
            self._braked = True
            self._released.clear()
            self._announce(events.BrakeOn(wait=self.wait))
        return allowed

    def refund(self, letter: DeadMessage | None) -> None:
        """Take back an unspent token; `letter` is None for a letter that was not made."""
        if letter is not None and is_unreadable(letter):
            self.partitions.refund(letter.message)
        else:
            self._state.refund(1)

    def settle(self, receipt: Receipt) -> None:
        """Enter a transaction: processed messages earn tokens, dead letters without a token cost them."""
        unreadable = [dead.message for dead in receipt.unpaid if is_unreadable(dead)]
        self.partitions.settle(receipt.processed, unreadable)
        count, funded = len(receipt.processed), min(receipt.funded, len(receipt.unpaid) - len(unreadable))
        self._successes += count
        if self._state.succeeded(count, funded):
            self._released.set()
            if self._suspended is not None:
                self._suspended = None
                self._announce(events.HandlerResumed())
            if self._braked:
                self._braked = False
                self._announce(events.BrakeOff())

    def failed(self, message: Message) -> None:
        """Record a message that failed and will be tried again."""
        self._failed.pop(origin(message), None)
        self._failed[origin(message)] = self._successes
        if len(self._failed) > REMEMBERED:
            del self._failed[next(iter(self._failed))]

    def is_poison(self, message: Message) -> bool:
        """Tell whether another message succeeded between this one's last two failures.

        If so, this message is wrong, and its dead letter costs no token. Otherwise the heads of blocked keys
        could use up the tokens, while only the messages behind them could earn more. In an outage nothing
        succeeds in between.
        """
        before = self._failed.pop(origin(message), None)
        return before is not None and self._successes > before

    @property
    def wait(self) -> float:
        """Seconds until the next probe."""
        return max(0.1, self._state.next_probe - time.monotonic())
