"""Observers get events in order, change nothing, and delay nothing."""

import dataclasses
import logging

import pytest

from consumerkit import events
from consumerkit.events import Announcer, Event, MessagesSkipped, OutboxPublished


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
