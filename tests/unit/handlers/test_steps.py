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
        ({"pay": named(pay, in_doubt="ask")}, 'step pay: in_doubt=\'ask\' is neither "retry" nor "dead-letter"'),
        ({"pay": named(pay, deadline=0)}, "step pay: deadline=0 is not a number of seconds > 0"),
        ({"pay": asked(pay, in_doubt="retry")}, "in_doubt has no effect beside confirm"),
        ({"pay": asked(plain)}, "step pay.confirm is plain `def`; make both the same"),
        ({"pay": asked(keyless)}, "step pay: its confirm takes other parameters than the step"),
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
