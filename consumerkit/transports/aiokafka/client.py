"""What the consumer and the producer on aiokafka share: starting, stopping, and access to aiokafka's internals.

All access to aiokafka's internals is in this module, in `records` and in `tokens`, so that a new
version of the library needs a check in three places.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

import aiokafka.errors as errors  # type: ignore[import-untyped]
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as ClientPartition
from aiokafka.conn import create_conn  # type: ignore[import-untyped]

from consumerkit.errors import StartError
from consumerkit.redaction.client_logs import silence_debugging
from consumerkit.transports.aiokafka.tokens import TokenProvider

START_TIMEOUT: Final = 20.0
"""Seconds after which a broker that does not answer is given up at the start."""

STOP_TIMEOUT: Final = 10.0
"""Seconds that the client may take to leave its group and to disconnect."""

C = TypeVar("C", bound="Client")

_PAUSE: Final = 0.5
_REFUSALS: Final = (
    errors.SaslAuthenticationFailed,
    errors.AuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.GroupAuthorizationFailedError,
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    ssl.SSLError,
)
# At DEBUG these print requests: payloads, and the exchange that sends a password.
_TALKATIVE: Final = ("aiokafka.conn", "aiokafka.producer.producer")


class Client(Protocol):
    """The methods that a consumer and a producer of aiokafka share."""

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Disconnect."""


async def connect(make: Callable[[], C], settings: Mapping[str, Any]) -> C:
    """Make a client and connect it; trouble of the broker that may pass is waited out for `START_TIMEOUT` seconds.

    Raises:
        StartError: The broker refused, or could not be reached in time.
    """
    if isinstance(provider := settings.get("sasl_oauth_token_provider"), TokenProvider):
        await provider.wait()
    end = time.monotonic() + START_TIMEOUT
    while True:
        keep_secrets_out_of_logs()
        client = _made(make)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(1.0, end - time.monotonic())):
                await client.start()
                _require_brokers(client)
            return client
        except (errors.KafkaError, OSError) as error:  # TimeoutError is an OSError
            await stop(client)
            # aiokafka logs the reason and raises only that it could not bootstrap, so ask one
            # broker again.
            reason = await _reason(settings) or error
            if isinstance(reason, _REFUSALS) or time.monotonic() + _PAUSE > end:
                place = ",".join(settings["bootstrap_servers"])
                raise StartError(f"Kafka at {place}: {words(reason)}; {_way_out(reason)}") from None
        except BaseException:
            await stop(client)
            raise
        await asyncio.sleep(_PAUSE)


def _made(make: Callable[[], C]) -> C:
    try:
        return make()
    except (TypeError, ValueError, AssertionError) as error:  # their text may contain an option's value
        wrong = type(error).__name__
        raise StartError(
            f"Kafka(options=...): aiokafka refused its settings ({wrong}); correct their values, or leave them out"
        ) from None


def _way_out(reason: Exception) -> str:
    if isinstance(reason, _REFUSALS):
        return "check security="
    return "check that the broker runs and that bootstrap= is right"


def _require_brokers(client: Any) -> None:
    # A broker that has just restarted may answer that it knows no broker, not even itself; aiokafka
    # then fails.
    connections = client.client if isinstance(client, AIOKafkaProducer) else client._client  # noqa: SLF001
    if not connections.cluster.brokers():
        raise errors.KafkaConnectionError("the cluster names no broker yet")


async def stop(client: Client) -> None:
    """Disconnect, within `STOP_TIMEOUT` seconds whatever the broker does."""
    task = asyncio.ensure_future(client.stop())
    await asyncio.wait({task}, timeout=STOP_TIMEOUT)
    await end(task)


async def end(task: asyncio.Future[None]) -> None:
    """Finish a client's `stop`, whether it is done or not."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        logging.getLogger(__name__).warning("disconnecting from Kafka: %s", words(error))


async def abandon(producer: AIOKafkaProducer) -> None:
    """Disconnect a producer without sending the records that it still has: they were already answered as failed."""
    producer._closed = True  # noqa: SLF001 - otherwise it logs an error when it is collected
    if producer._sender.sender_task is not None:  # noqa: SLF001
        await producer._sender.close()  # noqa: SLF001
    await producer.client.close()


def words(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def suited(make: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a client of this kind accepts."""
    known = inspect.signature(make).parameters
    return {name: value for name, value in options.items() if name in known}


def keep_secrets_out_of_logs() -> None:
    """Silence aiokafka's DEBUG lines of requests, which show passwords and payloads.

    Call it whenever a client connects: a program that configures its logging again loses filters.
    """
    silence_debugging(*_TALKATIVE)


async def _reason(settings: Mapping[str, Any]) -> Exception | None:
    host, _, port = settings["bootstrap_servers"][0].rpartition(":")
    names = inspect.signature(create_conn).parameters
    known = {name: value for name, value in settings.items() if name in names}
    try:
        connecting: Awaitable[Any] = create_conn(host.strip("[]"), int(port), request_timeout_ms=5_000, **known)
        connection = await asyncio.wait_for(connecting, 5.0)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the requested reason
        return error
    connection.close()
    return None


class Insight:
    """A consumer's internal state in aiokafka."""

    def __init__(self, client: AIOKafkaConsumer) -> None:
        self._client = client

    def fenced(self) -> bool:
        """Whether the broker has put this member out of the group.

        The same callback announces revoked and lost partitions. aiokafka forgets its generation
        before the call only if they are lost.
        """
        coordinator = self._client._coordinator  # noqa: SLF001
        return coordinator is not None and coordinator.generation < 0

    def member(self) -> str:
        """Return the ID by which the group knows this member; empty if it knows none."""
        coordinator = self._client._coordinator  # noqa: SLF001
        return "" if coordinator is None else str(coordinator.member_id)

    def position(self, partition: ClientPartition) -> int | None:
        """Return the offset where reading continues; the public method waits if that is not known yet."""
        subscription = self._client._subscription.subscription  # noqa: SLF001
        if subscription is None or subscription.assignment is None:
            return None
        state = subscription.assignment.state_value(partition)
        return state.position if state is not None and state.has_valid_position else None

    def fatal(self) -> str | None:
        """The error of one of the client's own tasks; from then on nothing is fetched, or no rebalance is followed."""
        coordinator, fetcher = self._client._coordinator, self._client._fetcher  # noqa: SLF001
        if coordinator is None or fetcher is None:
            return None
        for task in (coordinator._coordination_task, fetcher.error_future):  # noqa: SLF001
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                return words(error)
        return None
