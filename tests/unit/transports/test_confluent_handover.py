"""Messages reach the waiting fetch in the order of the log, whatever happens to other fetches."""

import asyncio
import time
from collections.abc import Callable

from consumerkit.message import Message
from consumerkit.transports.confluent.handover import Fetch, Handover
from consumerkit.transports.confluent.messages import Reading

READINGS = {("t", 0): Reading(epoch=1, topic_id="id", start=0)}


def messages(*offsets: int) -> list[Message]:
    return [Message("t", 0, offset, epoch=1) for offset in offsets]


def fetch(limit: int = 10, within: float = 60.0) -> Fetch:
    return Fetch(limit, time.monotonic() + within, asyncio.get_running_loop().create_future())


def handover(commands: list[Callable[[], None]]) -> Handover:
    return Handover(asyncio.get_running_loop(), commands.append)


async def test_a_fetch_that_expired_within_a_poll_is_not_given_what_the_poll_brought() -> None:
    commands: list[Callable[[], None]] = []
    waiting = handover(commands)
    first, second = fetch(within=0.0), fetch()
    waiting.ask(first)
    # A rebalance callback within the poll serves commands: the fetch's time is up, and the engine asks again.
    waiting.expire(time.monotonic())
    assert (await first.answer).messages == []
    waiting.ask(second)
    waiting.add(messages(0, 1, 2), 1)
    waiting.give(READINGS, 1)
    assert [message.offset for message in (await second.answer).messages] == [0, 1, 2]
    assert commands == []


async def test_what_a_poll_brought_waits_where_no_fetch_does() -> None:
    waiting = handover([])
    waiting.ask(fetch(within=0.0))
    waiting.expire(time.monotonic())
    waiting.add(messages(0, 1, 2), 1)
    waiting.give(READINGS, 1)
    waiting.add(messages(3, 4), 1)
    later = fetch(limit=4)
    waiting.ask(later)
    waiting.give(READINGS, 1)
    assert [message.offset for message in (await later.answer).messages] == [0, 1, 2, 3]
    assert [message.offset for message in waiting.ready] == [4]


async def test_what_was_given_up_meanwhile_is_given_to_nobody() -> None:
    waiting = handover([])
    waiting.add(messages(0, 1), 1)
    asked = fetch()
    waiting.ask(asked)
    waiting.give({}, 2)
    assert not waiting.ready
    assert waiting.fetch is asked
