"""Runs the steps of one message, and knows which of them are done."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from consumerkit import events
from consumerkit.errors import (
    AlreadyDone,
    ConfigurationError,
    Fenced,
    StepChanged,
    StepInDoubt,
    StepUnderWay,
    Unavailable,
)
from consumerkit.failpoints import reach
from consumerkit.handlers.declared_steps import DeclaredStep
from consumerkit.handlers.steps import BoundStep, IdempotencyKey, outcome
from consumerkit.steps.arguments import fingerprint, kept_arguments, passed
from consumerkit.steps.subject import Subject
from consumerkit.storage.ledger import LedgerMoved
from consumerkit.storage.step_values import End, FoundStep, Name, Start, StepState

if TYPE_CHECKING:
    from consumerkit.steps.lane_steps import LaneSteps

T = TypeVar("T")
_SOON: Final = 1.0
"""Seconds until the next try of a message whose step another worker has begun."""
_OURS: Final = (Fenced, StepChanged, StepInDoubt, StepUnderWay, Unavailable)


class _Call(NamedTuple):
    """One call of a step.

    Attributes:
        declared: The step.
        key: The key for the other side; the first generation's until the step has begun.
        args, kwargs: The other arguments.
        arguments: Bytes that identify these arguments.
    """

    declared: DeclaredStep
    key: IdempotencyKey
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    arguments: bytes

    @property
    def name(self) -> str:
        """The step's name."""
        return self.declared.name


class MessageSteps:
    """Runs the steps of one message; see `StepCalls`.

    Attributes:
        prepared: Whether `prepare` has run for it, or there is none.
        failure: The error that a step raised; `prepare` or `handle` must not go on after it.
    """

    def __init__(self, lane: LaneSteps, subject: Subject, memo: Mapping[str, FoundStep]) -> None:
        self.prepared = False
        self.subject = subject
        self._lane = lane
        self._memo = dict(memo)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running: dict[str, tuple[DeclaredStep, asyncio.Timeout | None]] = {}
        self._timeout: asyncio.Timeout | None = None
        self._at_work = 0
        self._over: asyncio.Future[None] | None = None
        self._in_slots: set[str] = set()
        self.failure: Exception | None = None

    # Called by a handler.

    def run(self, step: BoundStep[..., Any], args: Sequence[Any], kwargs: dict[str, Any], *, inside: bool) -> Any:
        """Return the result, or a coroutine for it; see `StepCalls.run`."""
        declared = self._declared(step)
        if inside:
            self._lane.refuse_inside(declared.name)
        name = declared.name
        call = _Call(declared, self._key(name, 1), args, kwargs, fingerprint(declared, args, kwargs))
        return self._run(call) if self._lane.shared.is_async else self._run_in_thread(call)

    def done(self, step: BoundStep[..., Any]) -> Any:
        """Return the result of a step that is done.

        Raises:
            LookupError: It was not run for this message.
        """
        declared = self._declared(step)
        found = self._memo.get(declared.name)
        if found is None or found.state is not StepState.DONE:
            raise LookupError(
                f"step {declared.name!r} has not run for this message; run it in prepare, or by context.run"
            )
        return _read(declared, found.result)

    def alive(self) -> Any:
        """Extend the deadlines of running steps, or return a coroutine that does so."""
        return self._alive() if self._lane.shared.is_async else self._lane.from_thread(self._alive())

    async def _alive(self) -> None:
        for name, (declared, limit) in list(self._running.items()):
            seconds = declared.deadline
            with self._told():
                if not await self._lane.journal.extend(self._name(name), seconds):
                    raise StepUnderWay(_SOON, f"step {name!r} took too long, and another worker has begun it since")
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

    def _key(self, step: str, generation: int) -> IdempotencyKey:
        return IdempotencyKey.of(self._lane.shared.name, self.subject.digest, step, generation)

    def _of_generation(self, call: _Call, generation: int) -> _Call:
        return call if generation == 1 else call._replace(key=self._key(call.name, generation))

    def _name(self, step: str) -> Name:
        return self.subject.digest, step

    # The two ways to call a step.

    async def _run(self, call: _Call) -> Any:
        await self._enter(call)
        try:
            found = self._remembered(call) or await self._begin(call)
            if found.ours:
                call = self._of_generation(call, found.generation)
                result = await self._called(call, found)
                self._leave_slot(call)
                found = await self._keep(call, result)
            return _read(call.declared, found.result)
        finally:
            self._leave(call)

    async def _called(self, call: _Call, found: FoundStep) -> Any:
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
                raise TimeoutError(_too_long(call)) from error
            await self._failed(call)
            raise
        finally:
            self._running.pop(call.name, None)

    def _run_in_thread(self, call: _Call) -> Any:
        ask = self._lane.from_thread
        ask(self._enter(call))
        try:
            found = self._remembered(call) or ask(self._begin(call))
            if found.ours:
                call = self._of_generation(call, found.generation)
                result = self._called_in_thread(call, found)
                self._lane.tell_loop(self._leave_slot, call)
                found = ask(self._keep(call, result))
            return _read(call.declared, found.result)
        finally:
            self._lane.tell_loop(self._leave, call)

    def _called_in_thread(self, call: _Call, found: FoundStep) -> Any:
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
            self._lane.from_thread(self._failed(call))
            raise
        finally:
            self._running.pop(call.name, None)
            self._lane.ends.pop(mark, None)

    # Shared by both ways; runs in the event loop.

    async def _enter(self, call: _Call) -> None:
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

    def _leave_slot(self, call: _Call) -> None:
        """Let another call begin; the result of this one may still be on its way to the database."""
        if call.name in self._in_slots:
            self._in_slots.remove(call.name)
            self._lane.shared.slots.release()

    def _leave(self, call: _Call) -> None:
        self._leave_slot(call)
        self._locks[call.name].release()
        self._ended()

    def _ended(self) -> None:
        self._at_work -= 1
        if not self._at_work and self._over is not None and not self._over.done():
            self._over.set_result(None)
        if self._timeout is not None and not self._at_work and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._lane.limit)

    def _remembered(self, call: _Call) -> FoundStep | None:
        found = self._memo.get(call.name)
        if found is None or found.state is not StepState.DONE:
            return None
        with self._told():
            self._check_same(call, found)
        self._lane.reused += 1
        return found

    async def _begin(self, call: _Call) -> FoundStep:
        """Begin a step, or return its earlier outcome."""
        step = call.declared
        settles = step.asks is not None or step.in_doubt == "retry" or self.subject.redriven
        given = None if step.undo is None else kept_arguments(step, call.args, call.kwargs)
        start = Start(self.subject.digest, step.name, call.arguments, step.deadline, settles, step.undo, given)
        with self._told():
            found = await self._lane.journal.start(start)
            self._check_undone(call, found)
            self._check_same(call, found)
            if found.ours:
                if found.state is StepState.STARTED:
                    self._tell_doubt(call, found, "asked" if step.asks is not None else "called again")
                reach("step_started")
            elif found.state is StepState.DONE:
                self._lane.reused += 1
                self._memo[call.name] = found
            elif found.wait > 0:
                self._tell_wait(call, found)
                why = (
                    f"step {step.name!r} has begun elsewhere and has no result yet; its deadline is in "
                    f"{found.wait:.0f} s"
                )
                raise StepUnderWay(found.wait, why)
            else:
                self._tell_doubt(call, found, "dead-lettered")
                raise StepInDoubt(
                    f"step {step.name!r} may have happened: it was begun, its result was not kept, and it has no "
                    f"confirm; look for the key {self._key(step.name, found.generation)} on the other side: a redrive "
                    "calls it again"
                )
        return found

    async def _keep(self, call: _Call, result: object) -> FoundStep:
        """Record a call's result."""
        reach("step_called")
        text = self._written(call, result)
        with self._told():
            if not await self._lane.journal.end(End(*self._name(call.name), StepState.DONE, text)):
                raise StepUnderWay(_SOON, f"step {call.name!r} took too long, and another worker has begun it since")
        reach("step_done")
        self._lane.called += 1
        self._memo[call.name] = found = FoundStep(StepState.DONE, call.arguments, text)
        return found

    def _written(self, call: _Call, result: object) -> str:
        """Return a call's result as JSON.

        Raises:
            StepInDoubt: It cannot be kept. The call was made, so another attempt would only repeat its effect.
        """
        try:
            text = call.declared.result.dump_json(result, warnings=False).decode()
            _read(call.declared, text)
        except Exception as error:
            self._lane.failed += 1
            with self._told():
                raise StepInDoubt(
                    f"step {call.name!r} was called and returned {type(result).__name__}, which cannot be kept as its "
                    f"annotated type: {type(error).__name__}; return what the annotation says, or change it: a redrive "
                    "calls the step again, with the same key"
                ) from error
        return text

    async def _failed(self, call: _Call) -> None:
        """Record that a call raised; the handler's `retry` then decides, not the step's deadline."""
        self._lane.failed += 1
        # The step's own error says more than a failure here. The journal writes this record before the step begins
        # again, and the next write finds a partition that is no longer ours.
        with suppress(Fenced, Unavailable):
            await self._lane.journal.end(End(*self._name(call.name), StepState.FAILED))

    def _check_undone(self, call: _Call, found: FoundStep) -> None:
        """Refuse to begin a step that must be undone first because its message was dead."""
        if found.state is StepState.UNDOING:
            self._tell_wait(call, found, undoing=True)
            raise StepUnderWay(
                max(_SOON, found.wait),
                f"step {call.name!r} must be undone before it is called again: its message died",
            )
        if found.state is StepState.NOT_UNDONE:
            raise StepInDoubt(
                f"step {call.name!r} could not be undone when its message died: decide on dead letter "
                f"{found.undo_letter} of its undo first; redrive it, or undo the step by hand and resolve it"
            )

    def _check_same(self, call: _Call, found: FoundStep) -> None:
        if found.arguments != call.arguments:
            raise StepChanged(
                f"step {call.name!r} ran for this message before, with other arguments; give it the same arguments "
                "each time, or declare a second step for a second effect"
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Keep the error that the handler gets, so that it cannot go on as if the step had succeeded."""
        try:
            yield
        except _OURS as error:
            self.failure = self.failure or error
            raise

    @contextmanager
    def bounded(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Let a time limit count only while no step is under way."""
        self._timeout = limit
        try:
            yield
        finally:
            self._timeout = None

    def _tell_wait(self, call: _Call, found: FoundStep, *, undoing: bool = False) -> None:
        self._lane.announce(
            events.StepAwaited(
                handler=self._lane.shared.name,
                partition=self.subject.partition,
                offset=self.subject.place[3],
                message_id=self.subject.message_id,
                step=call.name,
                wait=found.wait,
                undoing=undoing,
            ),
            self.subject.message,
        )

    def _tell_doubt(self, call: _Call, found: FoundStep, then: str) -> None:
        self._lane.announce(
            events.StepDoubted(
                handler=self._lane.shared.name,
                partition=self.subject.partition,
                offset=self.subject.place[3],
                message_id=self.subject.message_id,
                step=call.name,
                calls=found.calls,
                then=then,
            ),
            self.subject.message,
        )


def _read(declared: DeclaredStep, result: str | None) -> Any:
    return declared.result.validate_json(result or "null")


def _too_long(call: _Call) -> str:
    return (
        f"step {call.name!r} took longer than its deadline of {call.declared.deadline:g} s and was cancelled: it may "
        "have happened; raise its deadline, or extend it by effects.alive()"
    )
