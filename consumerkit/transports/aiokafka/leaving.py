"""Leaves a consumer group for a member that cannot: its process has died, or its connection is busy.

A broker waits for a silent member until its session expires. Any client that may use the group can
report sooner that the member has left. librdkafka offers no such request, so both Kafka transports send it here, on a
separate connection: a broker answers the requests of one connection in their order, and a member's
own request may wait behind a join that the broker answers only after the whole group has joined.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiokafka.errors as errors  # type: ignore[import-untyped]
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType  # type: ignore[import-untyped]
from aiokafka.protocol.admin import DescribeGroupsRequest  # type: ignore[import-untyped]
from aiokafka.protocol.group import LeaveGroupRequest  # type: ignore[import-untyped]

from consumerkit.errors import ConsumerkitError, Unavailable
from consumerkit.transports.aiokafka.client import keep_secrets_out_of_logs, suited, words
from consumerkit.transports.loopback import check_advertised

TIMEOUT: Final = 5.0
"""Seconds after which a broker that has not answered is given up."""

_PAUSE: Final = 0.1
_LATE: Final = 0.5
_ANSWER: Final = 2.0
# In these states a broker answers a member only after all members have joined, or after their
# leader has spoken.
_WAITING: Final = frozenset(("PreparingRebalance", "CompletingRebalance"))
_GONE: Final = (errors.UnknownMemberIdError, errors.GroupIdNotFound)
_MOVED: Final = (
    errors.NotCoordinatorForGroupError,
    errors.GroupCoordinatorNotAvailableError,
    errors.GroupLoadInProgressError,
)

Settings = Callable[[], Mapping[str, Any]]


class Leaving:
    """Leaves groups for members.

    Args:
        settings: Returns how to reach the cluster, in aiokafka's keyword arguments.
        local_only: Refuse brokers that are not on this machine.
    """

    def __init__(self, settings: Settings, *, local_only: bool = False) -> None:
        self._settings = settings
        self._local_only = local_only

    async def leave(self, group: str, members: Collection[str], *, within: float = TIMEOUT) -> None:
        """Leave a group for members; ignores members that the group no longer knows.

        Raises:
            Unavailable: The broker refused, or did not answer in time.
        """
        async with self._asking(group, within) as client:
            for member in members:
                await _leave(client, group, member)

    async def help_out(
        self, stopped: asyncio.Future[Any], group: str, member: Callable[[], str], *, is_at_work: Callable[[], bool]
    ) -> None:
        """Wait until a consumer has left its group, and leave for it if the group makes it wait.

        Args:
            stopped: Done when the consumer has left.
            group: The group.
            member: Returns the consumer's ID, empty if it has none.
            is_at_work: Returns whether the consumer itself must finish something before it leaves.
        """
        while not stopped.done():
            if not is_at_work() and (name := member()):
                with suppress(Unavailable):  # asked again
                    async with self._asking(group, _ANSWER) as client:
                        if await _keeps_waiting(client, group):
                            await _left(client, group, name)
            await asyncio.wait({stopped}, timeout=_LATE)

    @asynccontextmanager
    async def _asking(self, group: str, within: float) -> AsyncIterator[AIOKafkaClient]:
        keep_secrets_out_of_logs()
        client = AIOKafkaClient(**suited(AIOKafkaClient, self._settings()))
        try:
            async with asyncio.timeout(within):
                await client.bootstrap()
                if self._local_only:
                    check_advertised(broker.host for broker in client.cluster.brokers())
                yield client
        except TimeoutError:
            raise Unavailable(f"{group}: no answer to a leave in {within:g} s") from None
        except (errors.KafkaError, OSError, ConsumerkitError) as error:
            raise Unavailable(f"{group}: the broker did not take a leave: {words(error)}") from error
        finally:
            await client.close()


async def _keeps_waiting(client: AIOKafkaClient, group: str) -> bool:
    node = await client.coordinator_lookup(CoordinationType.GROUP, group)
    answer = await client.send(node, DescribeGroupsRequest([group]), group=ConnectionGroup.COORDINATION)
    # aiokafka returns the members of an array as tuples: error, group, state, and the version's
    # other fields.
    return any(described[2] in _WAITING for described in answer.groups)


async def _leave(client: AIOKafkaClient, group: str, member: str) -> None:
    while True:
        if await _left(client, group, member):
            return
        await asyncio.sleep(_PAUSE)


async def _left(client: AIOKafkaClient, group: str, member: str) -> bool:
    """Leave for one member; return whether the group's coordinator has answered."""
    try:
        node = await client.coordinator_lookup(CoordinationType.GROUP, group)
        request = LeaveGroupRequest(group, member)
        answer = await client.send(node, request, group=ConnectionGroup.COORDINATION)
        refusal = errors.for_code(answer.error_code)
    except (*_MOVED, errors.NodeNotReadyError, errors.StaleMetadata):
        return False
    if issubclass(refusal, _MOVED):
        return False
    if refusal is not errors.NoError and not issubclass(refusal, _GONE):
        raise refusal
    return True
