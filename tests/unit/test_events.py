"""Observers get events in order, change nothing, and delay nothing."""

import ast
import dataclasses
import logging
from contextvars import Context, ContextVar
from pathlib import Path

import pytest

import consumerkit
from consumerkit import events
from consumerkit.events import Announcer, Event, MessagesSkipped, OutboxPublished
from consumerkit.events.announcer import HasHeaders
from consumerkit.message import Message, TopicPartition

PRODUCT = Path(consumerkit.__file__).parent


def test_all_observers_are_told_in_order() -> None:
    told: list[tuple[str, Event]] = []
    announce = Announcer([lambda event: told.append(("one", event)), lambda event: told.append(("two", event))])
    first, second = MessagesSkipped(handler="h", count=1), OutboxPublished(count=2)
    announce(first)
    announce(second)
    assert told == [("one", first), ("two", first), ("one", second), ("two", second)]


def test_an_observers_error_is_logged_and_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []

    def breaks(_event: Event) -> None:
        raise ValueError("in the observer")

    with caplog.at_level(logging.ERROR, "consumerkit.events"):
        Announcer([breaks, told.append])(OutboxPublished(count=1))
    assert told == [OutboxPublished(count=1)]
    [record] = caplog.records
    assert "failed on OutboxPublished" in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_is_not_kept_from_it(error: type[BaseException]) -> None:
    def ends(_event: Event) -> None:
        raise error

    with pytest.raises(error):
        Announcer([ends])(OutboxPublished(count=1))


def test_an_announcer_of_a_handler_names_it_in_each_event() -> None:
    told: list[Event] = []
    root = Announcer()
    of_handler = root.for_handler("credit")
    root.add(told.append)
    of_handler(MessagesSkipped(count=1))
    assert told == [MessagesSkipped(handler="credit", count=1)]


def test_nobody_to_tell_is_nothing_to_do() -> None:
    Announcer()(OutboxPublished(count=1))


KINDS = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_frozen_and_names_its_handler(kind: type[Event]) -> None:
    assert "handler" in {field.name for field in dataclasses.fields(kind)}
    values = {field.name: None for field in dataclasses.fields(kind)}
    made = kind(**values)  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.handler = "other"  # type: ignore[misc]
    assert made == kind(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_no_event_has_a_place_for_a_payload(kind: type[Event]) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    assert not names & {"value", "key", "headers", "event", "message", "payload", "stack"}


def _without_their_message(source: str) -> list[str]:
    """The events about a message that are made elsewhere than in a call that also gets the message."""
    about = {kind.__name__ for kind in KINDS if "message_id" in {field.name for field in dataclasses.fields(kind)}}
    about |= {"OutboxHeldBack", "DeadLetterByReference"}
    tree = ast.parse(source)
    first = {id(call.args[0]) for call in ast.walk(tree) if isinstance(call, ast.Call) and len(call.args) > 1} | {
        id(part.value) for part in ast.walk(tree) if isinstance(part, ast.Return | ast.Assign)
    }
    return [
        f"{call.func.attr}, line {call.lineno}"
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in about
        if isinstance(call.func.value, ast.Name) and call.func.value.id == "events" and id(call) not in first
    ]


def test_whoever_announces_an_event_about_a_message_gives_the_message_too() -> None:
    """Otherwise the log line has no trace."""
    assert _without_their_message("announce(events.AttemptFailed(offset=1))") == ["AttemptFailed, line 1"]
    assert _without_their_message("announce(events.AttemptFailed(offset=1), message)") == []
    found = {
        str(path.relative_to(PRODUCT)): lines
        for path in PRODUCT.rglob("*.py")
        if path.parent.name not in ("events", "observability") and (lines := _without_their_message(path.read_text()))
    }
    assert found == {}


def test_observers_are_called_within_what_surrounds_the_message() -> None:
    current: ContextVar[str] = ContextVar("current", default="nothing")

    def surround(context: Context, handler: str, about: HasHeaders, message_id: str, attempt: int) -> None:
        context.run(current.set, f"{handler} {message_id} {attempt} {about.headers}")

    told: list[str] = []
    announce = Announcer([lambda _: told.append(current.get())], surround).for_handler("credit")
    at = {"partition": TopicPartition("t", 0), "offset": 7, "message_id": "pay-1", "error": "", "wait": None}
    failed = events.AttemptFailed(attempt=2, **at)  # type: ignore[arg-type]
    announce(failed, Message("t", 0, 7, None, None, (("traceparent", b"1"),)))
    announce(failed)
    assert told == ["credit pay-1 2 (('traceparent', b'1'),)", "nothing"]
    assert current.get() == "nothing"
