"""The three waits: how long they wait, and how a cancellation affects them and their work."""

import asyncio

import pytest

from consumerkit.concurrency import wait_for_first, wait_uncancelled, wait_until_set

LONG = 120.0


@pytest.mark.parametrize("which", [0, 1])
async def test_the_first_of_several_things_ends_the_wait_and_leaves_the_others(which: int) -> None:
    event, work = asyncio.Event(), asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(wait_for_first(event, work, within=LONG))
    await asyncio.sleep(0)
    event.set() if which == 0 else work.set_result(None)
    await waiting
    assert (event.is_set(), work.done()) == (which == 0, which == 1)


async def test_the_first_of_several_things_may_not_come() -> None:
    event, work = asyncio.Event(), asyncio.get_running_loop().create_future()
    await wait_for_first(event, work, within=0.01)
    assert not work.done()


async def test_a_cancellation_ends_a_wait_and_not_the_work_that_is_waited_for() -> None:
    event, work = asyncio.Event(), asyncio.get_running_loop().create_future()
    for waiting in (
        asyncio.create_task(wait_for_first(event, work, within=None)),
        asyncio.create_task(wait_until_set(event, None)),
    ):
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert not work.done()


async def test_work_that_is_never_cancelled_ends_before_the_cancellation_is_passed_on() -> None:
    work = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(wait_uncancelled(work, None))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    work.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not work.cancelled()


async def test_work_that_takes_longer_than_it_may_is_left_alone() -> None:
    work = asyncio.get_running_loop().create_future()
    assert not await wait_uncancelled(work, 0.01)
    assert not work.done()
