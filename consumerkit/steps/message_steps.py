"""Runs the steps of one message, in coroutines or in a thread."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from consumerkit.errors import (
    AlreadyDone,
    ConfigurationError,
)
from consumerkit.handlers.declared_steps import DeclaredStep
from consumerkit.handlers.steps import BoundStep, outcome
from consumerkit.steps.arguments import fingerprint, passed
from consumerkit.steps.outcomes import StepOutcomes, read
from consumerkit.steps.step_call import StepCall
from consumerkit.steps.subject import Subject
from consumerkit.storage.ledger import LedgerMoved
from consumerkit.storage.step_values import FoundStep

if TYPE_CHECKING:
    from consumerkit.steps.lane_steps import LaneSteps

T = TypeVar("T")


class MessageSteps:
    """Runs the steps of one message; see `StepCalls`.

    Attributes:
        prepared: Whether `prepare` has run for it, or there is none.
    """

    def __init__(self, lane: LaneSteps, subject: Subject, memo: Mapping[str, FoundStep]) -> None:
        self.prepared = False
        self.subject = subject
        self._lane = lane
        self._outcomes = StepOutcomes(lane, subject, memo)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running: dict[str, tuple[DeclaredStep, asyncio.Timeout | None]] = {}
        self._timeout: asyncio.Timeout | None = None
        self._at_work = 0
        self._over: asyncio.Future[None] | None = None
        self._in_slots: set[str] = set()

    @property
    def failure(self) -> Exception | None:
        """The error that a step raised; `prepare` or `handle` must not go on after it."""
        return self._outcomes.failure

    # Called by a handler.

    def run(self, step: BoundStep[..., Any], args: Sequence[Any], kwargs: dict[str, Any], *, inside: bool) -> Any:
        """Return the result, or a coroutine for it; see `StepCalls.run`."""
        declared = self._declared(step)
        if inside:
            self._lane.refuse_inside(declared.name)
        name = declared.name
        call = StepCall(declared, self._outcomes.key(name, 1), args, kwargs, fingerprint(declared, args, kwargs))
        return self._run(call) if self._lane.shared.is_async else self._run_in_thread(call)

    def done(self, step: BoundStep[..., Any]) -> Any:
        """Return the result of a step that is done.

        Raises:
            LookupError: It was not run for this message.
        """
        declared = self._declared(step)
        return self._outcomes.done(declared)

    def alive(self) -> Any:
        """Extend the deadlines of running steps, or return a coroutine that does so."""
        return self._alive() if self._lane.shared.is_async else self._lane.from_thread(self._alive())

    async def _alive(self) -> None:
        for name, (declared, limit) in list(self._running.items()):
            seconds = declared.deadline
            await self._outcomes.extend(declared)
            if limit is not None and name in self._running:
                limit.reschedule(asyncio.get_running_loop().time() + seconds)
            elif name in self._running:
                self._lane.ends[id(self), name] = time.monotonic() + seconds

    @property
    def at_work(self) -> bool:
        """Whether a step of the message runs or waits for its turn."""
        return self._at_work > 0

    async def over(self) -> None:
        """Wait until no step runs: one that `gather` left behind would be in doubt, and be called again."""
        while self._at_work:
            self._over = asyncio.get_running_loop().create_future()
            await self._over

    async def ended(self, prepare: Awaitable[BaseException | None]) -> BaseException | None:
        """Await `prepare`, and then the steps that it left behind; return what ended the attempt."""
        error = await prepare
        await self.over()
        return self.failure or error

    async def after(self, handle: Awaitable[T]) -> T:
        """Await `handle`, and then the steps that it left behind; return its result."""
        try:
            result = await handle
        except Exception:
            await self.over()
            raise
        await self.over()
        return result

    def after_in_thread(self, handle: Callable[[], T]) -> T:
        """Call `handle` in a thread, and then wait for the steps that it left behind; return its result."""
        try:
            return handle()
        finally:
            if self.at_work:
                self._lane.from_thread(self.over())

    def check_prepared(self) -> None:
        """Refuse an unprepared message: the ledger knew it at the preparation, and no longer knows it.

        Raises:
            LedgerMoved: The message is unprepared.
        """
        if not self.prepared:
            raise LedgerMoved(f"the ledger row of message ID {self.subject.message_id!r} is gone")

    def check(self) -> None:
        """Raise the error of a step that `prepare` or `handle` swallowed.

        Raises:
            Fenced, Unavailable, StepUnderWay, StepInDoubt, StepChanged: See `Effects.run`.
        """
        if self.failure is not None:
            raise self.failure

    def _declared(self, step: object) -> DeclaredStep:
        declared = self._lane.shared.declared.steps.get(step.step.name) if isinstance(step, BoundStep) else None
        if declared is None or not isinstance(step, BoundStep) or declared.source is not step.step:
            raise ConfigurationError(
                f"handler {self._lane.shared.name!r}: {step!r} is not a step of it; give a method declared with @step"
            )
        return declared

    # The two ways to call a step.

    async def _run(self, call: StepCall) -> Any:
        await self._enter(call)
        try:
            found = self._outcomes.remembered(call) or await self._outcomes.begin(call)
            if found.ours:
                call = self._outcomes.of_generation(call, found.generation)
                result = await self._called(call, found)
                self._leave_slot(call)
                found = await self._outcomes.keep(call, result)
            return read(call.declared, found.result)
        finally:
            self._leave(call)

    async def _called(self, call: StepCall, found: FoundStep) -> Any:
        limit = asyncio.timeout(call.declared.deadline)
        try:
            async with limit:
                self._running[call.name] = call.declared, limit
                if call.declared.asks is not None and found.state is not None:
                    args, kwargs = passed(call.declared, call.args, call.kwargs)
                    answer = outcome(await call.declared.asks(call.key, *args, **kwargs), call.name)
                    if answer is not None:
                        return answer.result
                return await call.declared.call(call.key, *call.args, **call.kwargs)
        except AlreadyDone as done:
            return done.result
        except Exception as error:
            if limit.expired() and isinstance(error, TimeoutError):
                # The interrupted effect may have happened. The record shows that, and the next run settles it.
                raise TimeoutError(call.too_long) from error
            await self._outcomes.failed(call)
            raise
        finally:
            self._running.pop(call.name, None)

    def _run_in_thread(self, call: StepCall) -> Any:
        ask = self._lane.from_thread
        ask(self._enter(call))
        try:
            found = self._outcomes.remembered(call) or ask(self._outcomes.begin(call))
            if found.ours:
                call = self._outcomes.of_generation(call, found.generation)
                result = self._called_in_thread(call, found)
                self._lane.tell_loop(self._leave_slot, call)
                found = ask(self._outcomes.keep(call, result))
            return read(call.declared, found.result)
        finally:
            self._lane.tell_loop(self._leave, call)

    def _called_in_thread(self, call: StepCall, found: FoundStep) -> Any:
        mark = id(self), call.name
        self._lane.ends[mark] = time.monotonic() + call.declared.deadline
        self._running[call.name] = call.declared, None
        try:
            if call.declared.asks is not None and found.state is not None:
                args, kwargs = passed(call.declared, call.args, call.kwargs)
                answer = outcome(call.declared.asks(call.key, *args, **kwargs), call.name)
                if answer is not None:
                    return answer.result
            return call.declared.call(call.key, *call.args, **call.kwargs)
        except AlreadyDone as done:
            return done.result
        except Exception:
            self._lane.from_thread(self._outcomes.failed(call))
            raise
        finally:
            self._running.pop(call.name, None)
            self._lane.ends.pop(mark, None)

    # Shared by both ways; runs in the event loop.

    async def _enter(self, call: StepCall) -> None:
        """Wait until no other run of this step is under way, then for a slot among the handler's calls."""
        self._at_work += 1
        if self._timeout is not None:
            self._timeout.reschedule(None)
        try:
            await self._locks[call.name].acquire()
            try:
                await self._lane.shared.slots.acquire()
            except BaseException:
                self._locks[call.name].release()
                raise
        except BaseException:
            self._ended()
            raise
        self._in_slots.add(call.name)

    def _leave_slot(self, call: StepCall) -> None:
        """Let another call begin; the result of this one may still be on its way to the database."""
        if call.name in self._in_slots:
            self._in_slots.remove(call.name)
            self._lane.shared.slots.release()

    def _leave(self, call: StepCall) -> None:
        self._leave_slot(call)
        self._locks[call.name].release()
        self._ended()

    def _ended(self) -> None:
        self._at_work -= 1
        if not self._at_work and self._over is not None and not self._over.done():
            self._over.set_result(None)
        if self._timeout is not None and not self._at_work and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._lane.limit)

    @contextmanager
    def bounded(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Let a time limit count only while no step is under way."""
        self._timeout = limit
        try:
            yield
        finally:
            self._timeout = None
