"""The event type is found through all classes between `Handler` and the user's class."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypeAliasType
from typing_extensions import TypeVar as TypeVarWithDefault

from consumerkit import BatchHandler, ConfigurationError, Handler
from consumerkit.handlers.event_type import MISSING, admits_none, declared_event_type

T = TypeVar("T")
U = TypeVar("U")
D = TypeVarWithDefault("D", default=int)


@dataclass
class Paid:
    id: str


class Envelope(BaseModel, Generic[T]):
    data: T


@dataclass
class Box(Generic[T]):
    data: T


class Direct(Handler[Paid]): ...


class Batch(BatchHandler[Paid]): ...


class Child(Direct): ...


class House(Handler[T], Generic[T]): ...


class ThroughHouse(House[Paid]): ...


class Wrapped(Handler[Envelope[T]], Generic[T]): ...


class ThroughWrapped(Wrapped[Paid]): ...


class Boxed(Handler[Box[T] | None], Generic[T]): ...


class ThroughBoxed(Boxed[Paid]): ...


class Swapped(House[U], Generic[T, U]): ...


class ThroughSwapped(Swapped[int, Paid]): ...


class Mixin: ...


class Mixed(Mixin, House[list[Paid]]): ...


class WithDefault(Handler[D], Generic[D]): ...


class ThroughDefault(WithDefault): ...


class Forward(Handler["Later"]): ...


class ForwardInside(House[list["Later"]]): ...


class GenericWithoutArguments(Handler[Box]): ...  # type: ignore[type-arg]


class Open(House): ...  # type: ignore[type-arg]


class GenericModel(Handler[Envelope]): ...  # type: ignore[type-arg]


class NotSaid(Handler): ...  # type: ignore[type-arg]


class Nowhere(Handler["Missing"]): ...  # type: ignore[name-defined]


@dataclass
class Later:
    id: str


Alias = TypeAliasType("Alias", Paid | None)


@pytest.mark.parametrize(
    "handler_class, event_type",
    [
        (Direct, Paid),
        (Batch, Paid),
        (Child, Paid),
        (ThroughHouse, Paid),
        (ThroughWrapped, Envelope[Paid]),
        (ThroughBoxed, Box[Paid] | None),
        (ThroughSwapped, Paid),
        (Mixed, list[Paid]),
        (ThroughDefault, int),
        (Forward, Later),
        (ForwardInside, list[Later]),
        (GenericWithoutArguments, Box),
        (GenericModel, Envelope),
        (NotSaid, MISSING),
    ],
)
def test_the_event_type_is_what_the_bases_say(handler_class: type, event_type: Any) -> None:
    assert declared_event_type(handler_class) == event_type


def test_an_open_type_variable_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^its event type leaves the type variable T open$"):
        declared_event_type(Open)


def test_a_forward_reference_that_names_nothing_is_named() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^its event type names 'Missing', which module .*test_event_type does"
    ):
        declared_event_type(Nowhere)


@pytest.mark.parametrize(
    "event_type", [None, Paid | None, Annotated[Paid | None, Field()], Alias, Any, object, int | str | None]
)
def test_types_that_admit_none(event_type: Any) -> None:
    assert admits_none(event_type)


@pytest.mark.parametrize("event_type", [Paid, bytes, int | str, list[None], Annotated[Paid, None], Envelope[None]])
def test_types_that_do_not_admit_none(event_type: Any) -> None:
    assert not admits_none(event_type)
