"""A broker that speaks Kafka's protocol without a server: librdkafka's own mock cluster, for demonstrations.

Run as a module, it is a broker in its own process that prints its address and lives until its
standard input closes; `EmbeddedBroker` starts and stops such a process.

It is not a real Kafka. Topics are created when they are first asked for, all with the same number
of partitions. A partition holds 5 MiB or 100,000 messages, and drops older ones silently. Nothing
survives the process. There is no admin API, no TLS, no SASL and no access control; topics have no
IDs. Groups of several aiokafka members do not work. Joining a group takes three seconds. It proves
nothing about rebalances.
"""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import Self


class EmbeddedBroker:
    """A broker in a child process; a context manager.

    Args:
        topics: Names of topics to create at once, each with four partitions.

    Attributes:
        bootstrap: `host:port`, while it runs.

    Example:
        >>> with EmbeddedBroker("payments") as broker:
        ...     broker.bootstrap.startswith("127.0.0.1:")
        True
    """

    def __init__(self, *topics: str) -> None:
        self.bootstrap = ""
        self._topics = topics
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "consumerkit.transports.embedded", *self._topics]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        self.bootstrap = self._process.stdout.readline().strip()
        if not self.bootstrap:
            self._end()
            raise RuntimeError("the embedded broker did not start; its own message is on standard error")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=10)  # closes its standard input, which ends the broker
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def main() -> None:
    """Run a broker: print the address, and live until standard input closes, as it does when the parent dies."""
    from confluent_kafka import Producer

    broker = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    brokers = broker.list_topics(timeout=10).brokers
    for topic in sys.argv[1:]:
        broker.list_topics(topic, timeout=10)  # asking for a topic creates it
    address = next(iter(brokers.values()))
    print(f"{address.host}:{address.port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
