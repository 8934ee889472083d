"""Tells poison from an outage: successes earn what dead letters spend.

A few bad messages among good ones are dead-lettered at once. If everything fails, as when a
provider is down or a bad version was deployed, the tokens are soon spent. Then nothing more is
dead-lettered, and the handler tries one message from time to time until one succeeds. It is a token
bucket that work fills instead of time.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from consumerkit.errors import ConfigurationError
from consumerkit.policies.wait import Wait, exponential


@dataclass(frozen=True, slots=True, kw_only=True)
class Brake:
    """How many dead letters a handler may write, in one process, before it stops and probes.

    Args:
        allowance: Dead letters without any success between them; also the limit of what successes
            can earn.
        earned: What one success earns; 0.25 lets one message in five be dead-lettered for ever.
        probe: The waits between one probing message and the next while the brake is on.
        rejected_keys: `Reject` is a verdict and spends nothing; but Rejects of more keys than this,
            without any success between them, put the brake on: a bad version may reject everything.
            A message without a key counts as one.

    Raises:
        ConfigurationError: A value is out of its range.

    Example:
        >>> Brake(allowance=3).allowance
        3
    """

    allowance: int = 10
    earned: float = 0.25
    probe: Wait = field(default_factory=lambda: exponential(1, max=60))
    rejected_keys: int = 100

    def __post_init__(self) -> None:
        for name in ("allowance", "rejected_keys"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigurationError(f"Brake({name}={value!r}): give a whole number >= 1")
        if isinstance(self.earned, bool) or not isinstance(self.earned, int | float) or not 0 < self.earned <= 1:
            raise ConfigurationError(f"Brake(earned={self.earned!r}): give a number above 0 and up to 1")
        if type(self.probe) is not Wait:
            raise ConfigurationError(f"Brake(probe={self.probe!r}): give exponential(...) or fixed(...)")


class BrakeState:
    """The state of one handler's brake in one process; time is an argument.

    Attributes:
        on: Whether the handler only probes.
    """

    __slots__ = ("_policy", "_probes", "_rejected", "_tokens", "_wait", "next_probe", "on")

    def __init__(self, policy: Brake) -> None:
        self._policy = policy
        self._tokens = float(policy.allowance)
        self._probes = 0
        self._rejected: set[Hashable] = set()
        self._wait = 0.0
        self.on = False
        self.next_probe = 0.0

    def funded(self, dead: int, good: int) -> int:
        """Return how many of these dead letters the successes of the same transaction pay for.

        They take no token, so a healthy flood leaves the tokens to others while its transaction is
        running. The letters and the successes commit together or not at all.
        """
        return min(dead, int(good * self._policy.earned))

    def spend(self, now: float) -> bool:
        """Take a token for a dead letter; if there is none, put the brake on and return False."""
        if self._tokens >= 1:
            self._tokens -= 1
            return True
        self.put_on(now)
        return False

    def reject(self, key: Hashable, now: float) -> bool:
        """Count a Reject; if too many keys were rejected since a success, put the brake on and return False."""
        if len(self._rejected) <= self._policy.rejected_keys:
            self._rejected.add(key)
        if len(self._rejected) <= self._policy.rejected_keys:
            return True
        self.put_on(now)
        return False

    def put_on(self, now: float) -> None:
        """Put the brake on, if it is off."""
        if not self.on:
            self.on = True
            self._probes = 0
            self.failed_probe(now)

    def refund(self, count: int) -> None:
        """Take back tokens of dead letters that were not written after all."""
        self._tokens = min(float(self._policy.allowance), self._tokens + count)

    def failed_probe(self, now: float) -> None:
        """Set the time of the next probe after a failed one."""
        self._probes += 1
        self._wait = self._policy.probe.after(self._probes)
        self.next_probe = now + self._wait

    def wait_again(self, now: float) -> None:
        """Restart the wait for the next probe now, with the same length."""
        self.next_probe = now + self._wait

    def succeeded(self, count: int, funded: int = 0) -> bool:
        """Earn tokens by processed messages, not by duplicates; return whether this took the brake off.

        Args:
            count: Processed messages.
            funded: Dead letters in the same transaction that took no token.
        """
        earned = count * self._policy.earned - funded
        self._tokens = min(float(self._policy.allowance), max(0.0, self._tokens + earned))
        if not count:
            return False
        self._rejected.clear()
        was_on, self.on = self.on, False
        if was_on:
            # The messages that failed under the brake run again: the first dead letter must not put
            # it on again.
            self._tokens = max(self._tokens, 1.0)
        return was_on
