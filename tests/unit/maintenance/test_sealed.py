"""A payload that retention cannot unseal is trouble of the codec, until it can."""

from collections.abc import AsyncIterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from consumerkit.errors import PayloadSealed
from consumerkit.events import Announcer, Event, Trouble, TroubleOver
from consumerkit.maintenance.expirer import TURN, Expiry
from consumerkit.message import TopicPartition
from consumerkit.policies.payload_retention import PayloadRetention


class Sealed(Expiry):
    """Has one partition, with a payload that is sealed while the test says so."""

    sealed = True

    async def _partition(self, *_: Any) -> AsyncIterator[int]:
        yield 1
        if self.sealed:
            raise PayloadSealed("as asked")


async def test_a_payload_that_can_be_unsealed_again_is_the_end_of_the_trouble() -> None:
    async def run(_: Any) -> Any:
        return [TopicPartition("t", 0), TopicPartition("t", 1)]

    told: list[Event] = []
    expiring: Any = SimpleNamespace(partitions=lambda: None)
    terms: Any = SimpleNamespace(name="credit")
    expiry = Sealed(
        run, expiring, PayloadRetention(parked=60.0), [terms], lambda: nullcontext(True), Announcer([told.append])
    )
    for sealed in (True, False, False):
        expiry.sealed = sealed
        ended, skipped = await expiry._lot(terms, 1)
        assert (ended, len(skipped)) == (2, 2 * sealed)  # what was committed before counts
    trouble = Trouble(handler="credit", where="codec", error="as asked", wait=TURN, work="retention")
    assert told[:2] == [trouble, trouble]
    (over,) = told[2:]
    assert isinstance(over, TroubleOver)
    assert (over.handler, over.where, over.work) == ("credit", "codec", "retention")
