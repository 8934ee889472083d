"""Tells a message's own fault from trouble that others share; see docs/decisions/0043.

An error such as a missing table or a cancelled statement may concern one message or all of them. Another
message decides: if it succeeds, the first one is wrong; if it fails likewise, everything is wrong.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from consumerkit.engine.lanes.blame import Blame
from consumerkit.engine.lanes.brake_gate import REMEMBERED, BrakeGate
from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.message import Message
from consumerkit.storage.origins import Origin, origin

FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 30.0


class _Seen(NamedTuple):
    kind: str
    successes: int
    runs: int
    wrong: bool = False
    """Whether another message succeeded after its first failure."""


class Suspects:
    """The messages of one engine that failed alone while it is unknown whose fault it is.

    Memory only: after a restart each has another run that does not count.

    Args:
        gate: Counts the successes, and pauses the handler.
        partition_store: The database.
    """

    def __init__(self, gate: BrakeGate, partition_store: PartitionStore) -> None:
        self._gate = gate
        self._handler = partition_store.handler
        self.probe = partition_store.probe
        self._seen: dict[Origin, _Seen] = {}
        # The messages that failed in each way since the last success; two are enough.
        self._since = 0
        self._failed: dict[str, list[Origin]] = {}
        self._charged: dict[str, Message] = {}

    def judge(self, message: Message, blame: Blame, described: str, *, holds_up: bool) -> float | None:
        """Return the seconds to wait without a counted attempt; None if the attempt counts.

        Args:
            message: The message that failed alone.
            blame: How it failed.
            described: The error's text, announced if the handler pauses.
            holds_up: Whether other messages wait behind it.
        """
        at, now, kind = origin(message), self._gate.successes, blame.kind
        before = self._seen.pop(at, None)
        again = before is not None and before.kind == kind
        runs = before.runs + 1 if before is not None and again else 1
        succeeded = before is not None and again and now > before.successes and not blame.waited
        others = not succeeded and self._others(at, kind, now)
        wrong = succeeded or (before is not None and again and before.wrong and not others)
        self._remember(at, _Seen(kind, now, runs, wrong))
        if wrong:
            return None
        if others:
            self._gate.suspend(kind, described + self._redrive(kind))
        elif again and holds_up and not blame.waited:
            # No other message can run before this one ends, so its `retry` decides.
            self._charged.setdefault(kind, message)
            return None
        wait: float = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(runs - 1, 10))
        return wait

    def _remember(self, at: Origin, seen: _Seen) -> None:
        self._seen[at] = seen
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]

    def _others(self, at: Origin, kind: str, now: int) -> bool:
        """Record a failure; return whether others failed in this way since the last success."""
        if now != self._since:
            self._since = now
            self._failed.clear()
        failed = self._failed.setdefault(kind, [])
        if at not in failed and len(failed) < 2:
            failed.append(at)
        return any(other != at for other in failed)

    def _redrive(self, kind: str) -> str:
        message = self._charged.get(kind)
        if message is None:
            return ""
        return (
            f"; {message.topic}[{message.partition}]@{message.offset} failed in the same way before: if it is a dead "
            f"letter now, `consumerkit dead-letters redrive --handler {self._handler} --reason exhausted` brings it "
            "back"
        )
