"""No attempt sees what another one set in its context, and the coroutine runs as usual."""

import asyncio
import decimal
import threading
from collections.abc import AsyncIterator, Awaitable, Generator
from contextlib import asynccontextmanager
from contextvars import ContextVar, Token, copy_context
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.util import await_only, greenlet_spawn

from consumerkit.engine.transaction.fresh_context import FreshContexts, in_context

NAME: ContextVar[str] = ContextVar("NAME", default="nothing")
NUMBER = Decimal("1234567.89")


async def sets(name: str) -> tuple[str, str]:
    """Set what lasts, wait, and return what was there before."""
    before = NAME.get(), str(+NUMBER)
    NAME.set(name)
    decimal.getcontext().prec = 4
    await asyncio.sleep(0)
    assert (NAME.get(), str(+NUMBER)) == (name, "1.235E+6")
    return before


async def test_what_a_coroutine_sets_is_gone_for_the_next_one_and_for_the_caller() -> None:
    NAME.set("the worker's")
    contexts = FreshContexts()
    NAME.set("the lane's")
    for name in ("a", "b"):
        assert await in_context(contexts.new(), sets, name) == ("the worker's", "1234567.89")
    assert (NAME.get(), str(+NUMBER)) == ("the lane's", "1234567.89")


async def test_two_at_once_do_not_see_each_other() -> None:
    contexts = FreshContexts()
    found = await asyncio.gather(*(in_context_as_task(contexts, name) for name in "abc"))
    assert found == [("nothing", "1234567.89")] * 3


async def in_context_as_task(contexts: FreshContexts, name: str) -> tuple[str, str]:
    return await in_context(contexts.new(), sets, name)


def test_a_plain_function_in_any_thread() -> None:
    copy_context().run(_in_any_thread)


def _in_any_thread() -> None:
    NAME.set("the worker's")
    with decimal.localcontext() as context:
        context.prec = 9
        contexts = FreshContexts()
    found: list[tuple[str, int]] = []

    def sets_plain() -> None:
        found.append((NAME.get(), decimal.getcontext().prec))
        NAME.set("its own")
        decimal.getcontext().prec = 1

    def twice() -> None:
        contexts.run(sets_plain)
        contexts.run(sets_plain)

    thread = threading.Thread(target=twice)
    thread.start()
    thread.join()
    contexts.run(sets_plain)
    assert found == [("the worker's", 9)] * 3


async def test_setup_and_handler_share_what_they_are_given() -> None:
    own = FreshContexts().new()

    async def setup() -> Token[str]:
        return NAME.set("set up")

    async def handle(token: Token[str]) -> tuple[str, str]:
        before = NAME.get()
        NAME.reset(token)
        return before, NAME.get()

    assert await in_context(own, handle, await in_context(own, setup)) == ("set up", "nothing")


async def test_flags_that_the_worker_raised_are_not_the_handlers() -> None:
    Decimal(1) / Decimal(3)
    contexts = FreshContexts()
    assert not any(contexts.run(decimal.getcontext).flags.values())


async def test_it_is_the_callers_own_task() -> None:
    async def asks() -> asyncio.Task[Any] | None:
        await asyncio.sleep(0)
        return asyncio.current_task()

    assert await in_context(FreshContexts().new(), asks) is asyncio.current_task()


async def test_an_error_comes_out_as_it_was_raised_and_a_stop_iteration_as_python_has_it() -> None:
    error = ValueError("x")

    async def raises(it: BaseException) -> None:
        await asyncio.sleep(0)
        raise it

    with pytest.raises(ValueError, match="x") as caught:
        await in_context(FreshContexts().new(), raises, error)
    assert caught.value is error
    with pytest.raises(RuntimeError, match="StopIteration"):
        await in_context(FreshContexts().new(), raises, StopIteration())


async def test_an_error_out_of_what_is_awaited_is_thrown_in_and_may_be_caught() -> None:
    waited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(waited.set_exception, LookupError("x"))

    async def catches() -> str:
        try:
            return await waited
        except LookupError:
            NAME.set("caught")
            await asyncio.sleep(0)
            return NAME.get()

    assert await in_context(FreshContexts().new(), catches) == "caught"


async def test_a_timeout_within_and_one_around_end_what_is_waited_for() -> None:
    ends: list[str] = []

    async def waits(within: float | None) -> str:
        try:
            async with asyncio.timeout(within):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        finally:
            ends.append(NAME.get())
        return "never"

    assert await in_context(FreshContexts().new(), waits, 0.01) == "timed out"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await in_context(FreshContexts().new(), waits, None)
    assert len(ends) == 2


async def test_a_cancellation_reaches_it_and_may_be_held_up() -> None:
    seen: list[str] = []
    begun = asyncio.Event()

    async def holds() -> None:
        NAME.set("mine")
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append(NAME.get())
            raise

    async def lane() -> None:
        await in_context(FreshContexts().new(), holds)

    task = asyncio.create_task(lane())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["mine"]
    assert task.cancelled()


async def test_a_task_group_within_passes_the_context_on() -> None:
    async def child() -> str:
        await asyncio.sleep(0)
        return NAME.get()

    async def groups() -> list[str]:
        NAME.set("the parent's")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(child()) for _ in range(2)]
        return [task.result() for task in tasks]

    assert await in_context(FreshContexts().new(), groups) == ["the parent's"] * 2

    async def fails() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(sets("x"))
            raise LookupError

    with pytest.raises(ExceptionGroup) as caught:
        await in_context(FreshContexts().new(), fails)
    assert caught.group_contains(LookupError)


async def test_async_generators_and_context_managers_within() -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def bound() -> AsyncIterator[None]:
        token = NAME.set("bound")
        try:
            yield
        finally:
            NAME.reset(token)

    async def counts() -> AsyncIterator[int]:
        try:
            for number in range(3):
                await asyncio.sleep(0)
                yield number
        finally:
            steps.append("closed")

    async def uses() -> tuple[list[int], str, str]:
        async with bound():
            within = NAME.get()
            found = [number async for number in counts()]
        return found, within, NAME.get()

    assert await in_context(FreshContexts().new(), uses) == ([0, 1, 2], "bound", "nothing")
    assert steps == ["closed"]


async def test_sqlalchemys_greenlets_see_the_context_and_may_change_it() -> None:
    def within() -> str:
        before = NAME.get()
        await_only(asyncio.sleep(0))
        assert NAME.get() == before
        NAME.set("set in a greenlet")
        await_only(asyncio.sleep(0))
        return before

    async def uses() -> tuple[str, str]:
        NAME.set("mine")
        return await greenlet_spawn(within), NAME.get()

    for _ in range(2):
        assert await in_context(FreshContexts().new(), uses) == ("mine", "set in a greenlet")
    assert NAME.get() == "nothing"


class Waits(Awaitable[str]):
    def __await__(self) -> Generator[Any, Any, str]:
        yield from asyncio.sleep(0).__await__()
        return NAME.get()


async def test_what_is_no_coroutine_is_awaited_too() -> None:
    assert await in_context(FreshContexts().new(), Waits) == "nothing"

    def task() -> "asyncio.Task[tuple[str, str]]":
        return asyncio.ensure_future(sets("x"))

    assert await in_context(FreshContexts().new(), task) == ("nothing", "1234567.89")


async def test_one_that_is_dropped_is_closed() -> None:
    ended: list[str] = []

    async def waits() -> None:
        NAME.set("mine")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(NAME.get())

    driven: Any = in_context(FreshContexts().new(), waits)
    driven.send(None)
    driven.close()
    assert ended == ["mine"]
    assert "mine" not in copy_context().values()
