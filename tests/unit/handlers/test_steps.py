"""How steps are declared, and what is refused when the worker is built."""

import inspect
from typing import Any

import pytest

from consumerkit import (
    AlreadyDone,
    BatchContext,
    BatchHandler,
    ConfigurationError,
    Context,
    Effects,
    Handler,
    IdempotencyKey,
    header,
    step,
)
from consumerkit.handlers.declaration import declare
from consumerkit.handlers.declared_steps import runs_steps_inside
from consumerkit.handlers.step_checks import may_run_steps
from consumerkit.steps.arguments import fingerprint


class Pay(Handler[bytes]):
    name = "pay"
    topic = "t"
    message_id = header("id")

    @step
    async def pay(self, key: IdempotencyKey, amount: int) -> str:
        return f"{key} {amount}"

    async def prepare(self, event: bytes, effects: Effects) -> None:
        await effects.run(self.pay, 1)

    async def handle(self, event: bytes, context: Context) -> None: ...


def made(**attributes: Any) -> Pay:
    """The handler with other attributes."""
    cls: Any = type("Pay", (Pay,), attributes)
    found: Pay = cls()
    return found


def test_a_step_is_read_with_its_defaults() -> None:
    declared = declare(made())
    [found] = declared.steps.values()
    assert (found.name, found.deadline, found.in_doubt, found.asks) == ("pay", 60.0, "retry", None)
    assert list(found.signature.parameters) == ["amount"]
    assert (declared.step_concurrency, declared.prepare is not None) == (100, True)


async def pay(self: Any, key: IdempotencyKey, amount: int) -> str: ...  # type: ignore[empty-body]
def plain(self: Any, key: IdempotencyKey, amount: int) -> str: ...  # type: ignore[empty-body]
async def keyless(self: Any) -> str: ...  # type: ignore[empty-body]
async def untyped(self: Any, key: IdempotencyKey, amount: int): ...  # type: ignore[no-untyped-def]
async def odd(self: Any, key: IdempotencyKey, amount: int) -> inspect.Signature: ...  # type: ignore[empty-body]


def named(method: Any, **options: Any) -> Any:
    """A step under the name `pay`."""
    method.__name__ = "pay"
    return step(**options)(method)


def asked(method: Any, **options: Any) -> Any:
    """A step `pay` that asks by a method."""
    declared = named(pay, **options)
    declared.confirm(method)
    return declared


@pytest.mark.parametrize(
    "attributes, problem",
    [
        ({"charge": step(pay)}, "charge is a step whose result would be kept under the name 'pay' of its function"),
        ({"pay": named(plain)}, "handle is `async def` and step pay is plain `def`; make both the same"),
        ({"pay": named(keyless)}, "step pay takes no key; define pay(self, key, ...)"),
        ({"pay": named(untyped)}, "step pay has no return annotation, which its result is kept by"),
        ({"pay": named(odd)}, "which cannot be kept as JSON"),
        (
            {"pay": named(pay, in_doubt="confrim")},
            'step pay: in_doubt=\'confrim\' is neither "retry" nor "dead-letter"',
        ),
        ({"pay": named(pay, in_doubt="confirm")}, "leave it out and write @pay.confirm above the method that asks"),
        ({"pay": named(pay, deadline=0)}, "step pay: deadline=0 is not a number of seconds > 0"),
        ({"pay": asked(pay, in_doubt="retry")}, "in_doubt has no effect beside confirm"),
        ({"pay": asked(plain)}, "step pay.confirm is plain `def`; make both the same"),
        (
            {"pay": asked(keyless)},
            "step pay: its confirm cannot be called: too many positional arguments; define it with (self, key, amount)",
        ),
        ({"pay": None}, "defines prepare, and has no step to run in it"),
        ({"step_concurrency": 0}, "step_concurrency=0 is not a whole number >= 1"),
        ({"prepare": lambda self, event: None}, "prepare takes other parameters than consumerkit passes"),
    ],
)
def test_what_is_declared_wrongly_is_refused(attributes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        declare(made(**attributes))
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


async def loose_prepare(self: Any, event: bytes, effects: Effects) -> None: ...
async def misplaced(self: Any, key: IdempotencyKey, amount: int, done: str) -> None: ...
async def no_result(self: Any, key: IdempotencyKey, amount: int) -> None: ...
async def loose(self: Any, key: IdempotencyKey, *given: Any) -> None: ...
async def by_name(self: Any, key: IdempotencyKey, done: str, *, amount: int) -> None: ...
async def takes_set(self: Any, key: IdempotencyKey, amounts: set[int]) -> str: ...  # type: ignore[empty-body]
async def amount_first(self: Any, amount: int) -> str: ...  # type: ignore[empty-body]


def undone(method: Any, **options: Any) -> Any:
    """A step `pay` that is undone by a method."""
    declared = named(pay)
    declared.undo(**options)(method)
    return declared


def unfinished(what: str) -> Any:
    """A step `pay` whose decorator `what` decorates nothing."""
    declared = named(pay)
    getattr(declared, what)()
    return declared


@pytest.mark.parametrize(
    "attributes, problem",
    [
        (
            {"pay": undone(no_result)},
            "step pay: its undo cannot be called: too many positional arguments; define it with (self, key, done, amo",
        ),
        ({"pay": undone(misplaced)}, "step pay: its undo takes 'amount' in another place than consumerkit passes it"),
        ({"pay": undone(by_name)}, "step pay: its undo cannot be called"),
        ({"pay": undone(loose, in_doubt="yes")}, "step pay: undo(in_doubt='yes') is neither True nor False"),
        ({"pay": undone(loose, retry=5)}, "step pay: undo(retry=5) is not a Retry"),
        ({"pay": unfinished("undo")}, "step pay: undo(...) decorates no method; write @pay.undo above one"),
        ({"pay": unfinished("confirm")}, "step pay: confirm(...) decorates no method; write @pay.confirm above one"),
        ({"pay": named(amount_first)}, "step pay takes amount: <class 'int'> first; the key comes before it"),
        ({"pay": staticmethod(named(pay))}, "step pay is a staticmethod; take that away, since a step takes the"),
        ({"pay": pay}, "pay overrides step Pay.pay and is no step; decorate it with @step, or rename it"),
        (
            {"pay": named(takes_set)},
            "step pay takes amounts, which is a set, whose order differs from process to process: it cannot",
        ),
        ({"prepare": None}, "has the step pay and runs it nowhere; define prepare(self, event, effects)"),
        ({"prepare": loose_prepare}, "has the step pay and runs it nowhere; define prepare(self, event, effects)"),
    ],
)
def test_what_would_be_missed_long_after_the_start_is_refused(attributes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        declare(made(**attributes))
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_method_is_refused_where_it_stands() -> None:
    declared: Any = named(pay)
    for given, shown in (("refund", "'refund'"), (named(pay), "a step"), (staticmethod(pay), "a staticmethod")):
        for what in ("undo", "confirm"):
            with pytest.raises(ConfigurationError, match=f"step 'pay': {what}={shown} is not a method; write @pay."):
                getattr(declared, what)(given)
    wrong: Any
    for wrong in (20, "pay", named(pay)):
        with pytest.raises(ConfigurationError, match="is not given a method; write @step, or @step"):
            step(wrong)


def test_a_step_of_the_instance_is_refused() -> None:
    handler: Any = made()
    handler.other = named(pay)
    with pytest.raises(ConfigurationError, match="other is a step of the instance; declare it in the class, with @s"):
        declare(handler)


def test_two_steps_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"step 'pay' is declared twice in .*\.Twice; give each a name of"):

        class Twice(Pay):
            @step
            async def pay(self, key: IdempotencyKey, amount: int) -> str: ...

            @step(deadline=20)  # type: ignore[no-redef]
            async def pay(self, key: IdempotencyKey) -> str: ...  # noqa: F811


def test_a_subclass_may_declare_the_step_again() -> None:
    class Other(Pay):
        @step(deadline=20)
        async def pay(self, key: IdempotencyKey, amount: int) -> str: ...  # type: ignore[empty-body]

    assert declare(Other()).steps["pay"].deadline == 20


@pytest.mark.parametrize("what", ["undo", "confirm"])
def test_a_method_that_would_replace_its_step_is_refused(what: str) -> None:
    with pytest.raises(ConfigurationError, match=f"step 'pay': the method for {what} has the step's own name"):

        class Replaced(Pay):
            @step
            async def pay(self, key: IdempotencyKey, amount: int) -> str: ...

            @getattr(pay, what)  # type: ignore[no-redef]
            async def pay(self, *given: Any) -> None: ...


def test_a_subclass_may_override_how_a_step_is_undone_and_confirmed() -> None:
    class Base(Pay):
        @step
        async def pay(self, key: IdempotencyKey, amount: int) -> str: ...  # type: ignore[empty-body]

        @pay.undo
        async def refund(self, key: IdempotencyKey, done: str, amount: int) -> None: ...

        @pay.confirm
        async def find(self, key: IdempotencyKey, amount: int) -> AlreadyDone | None: ...

    class Sub(Base):
        async def refund(self, key: IdempotencyKey, done: str, amount: int) -> None: ...

        async def find(self, key: IdempotencyKey, amount: int) -> AlreadyDone | None: ...

    handler = Sub()
    found = declare(handler).steps["pay"]
    assert (found.undoes, found.asks) == (handler.refund, handler.find)


async def test_a_step_is_not_called_directly() -> None:
    handler: Any = made()
    with pytest.raises(
        TypeError, match=r"step 'pay' is not called directly.*effects\.run\(self\.pay, \.\.\.\) in prepare"
    ):
        await handler.pay("key", 1)


def test_what_may_run_a_step_is_not_refused() -> None:
    async def passes_on(self: Any, event: bytes, context: Context) -> None:
        await self.charge(context)

    async def in_a_closure(self: Any, event: bytes, context: Context) -> None:
        await self.each(lambda: context.run(self.pay, 1))

    async def runs(self: Any, event: bytes, context: Context) -> None:
        await context.run(self.pay, 1)

    async def reads(self: Any, event: bytes, context: Context) -> None:
        context.session.add(context.message_id)

    for handle, may in ((passes_on, True), (in_a_closure, True), (runs, True), (reads, False)):
        assert may_run_steps(handle) == may
        if may:
            declare(made(prepare=None, handle=handle))


def test_a_batch_handler_has_no_steps() -> None:
    class Bulk(BatchHandler[bytes]):
        name = "bulk"
        topic = "t"
        message_id = header("id")

        @step
        async def pay(self, key: IdempotencyKey) -> None: ...

        async def handle_batch(self, events: Any, context: BatchContext) -> None: ...

    with pytest.raises(ConfigurationError, match="is a BatchHandler and has the step pay; only a Handler has steps"):
        declare(Bulk())


def test_two_methods_for_confirm_are_refused() -> None:
    declared = asked(pay)
    with pytest.raises(ConfigurationError, match="step 'pay' has two methods for confirm"):
        declared.confirm(pay)


def test_a_key_is_the_same_each_time_and_no_other_ones() -> None:
    keys = [IdempotencyKey.of("pay", bytes(15) + bytes([n]), name, 1) for n in range(2) for name in ("a", "b")]
    assert len(set(keys)) == 4
    assert keys[0] == IdempotencyKey.of("pay", bytes(16), "a", 1) != IdempotencyKey.of("pay", bytes(16), "a", 2)


def test_arguments_are_told_apart_however_they_are_given() -> None:
    found = declare(made()).steps["pay"]
    assert fingerprint(found, (1,), {}) == fingerprint(found, (), {"amount": 1}) != fingerprint(found, (2,), {})
    with pytest.raises(TypeError, match="takes \\(amount\\) after the key"):
        fingerprint(found, (), {})
    with pytest.raises(TypeError, match="argument 'amount' is a object, which cannot be compared with a later call's"):
        fingerprint(found, (object(),), {})
    with pytest.raises(TypeError, match="argument 'amount' is a set"):
        fingerprint(found, ({1, 2},), {})


def test_what_handle_runs_itself_is_seen() -> None:
    async def inside(self: Any, event: bytes, context: Context) -> None:
        await context.run(self.pay, 1)

    async def outside(self: Any, event: bytes, context: Context) -> None:
        self.run(context)

    assert (runs_steps_inside(inside), runs_steps_inside(outside)) == (True, False)


def test_already_done_can_have_any_result() -> None:
    assert AlreadyDone().result is None
    assert AlreadyDone({"number": 1}).result == {"number": 1}
