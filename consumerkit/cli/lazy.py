"""A group of commands that imports a command when it is called: the help of the whole takes no room's imports."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

from consumerkit.cli import typed


class Room(NamedTuple):
    """Where a command, or a group of them, is defined.

    Attributes:
        place: `module:attribute` of a `typer.Typer`, or of a function that is the command.
        help: Its line in the list of commands. A test compares it with the command's own.
        epilog: The end of its help, for a function.
    """

    place: str
    help: str
    epilog: str | None = None

    def load(self, name: str) -> Any:
        """Import it; return it as a command of this name."""
        module, _, attribute = self.place.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        outer = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        outer.callback()(_nothing)  # makes a group of it, however many commands it has
        if isinstance(found, typer.Typer):
            outer.add_typer(found, name=name)
        else:
            outer.command(name, epilog=self.epilog)(found)
        group: Any = typer.main.get_command(outer)
        return group.commands[name]


class Rooms(Mapping[str, Any]):
    """The commands by name, each imported when it is asked for."""

    def __init__(self, rooms: Mapping[str, Room]) -> None:
        self._rooms = rooms

    def __getitem__(self, name: str) -> Any:
        """Import and return a command."""
        return self._rooms[name].load(name)

    def __iter__(self) -> Iterator[str]:
        """Go through the names, in the order of the list."""
        return iter(self._rooms)

    def __len__(self) -> int:
        """Return how many commands there are."""
        return len(self._rooms)


def _nothing() -> None:
    """Do nothing before a command."""


def lazy_group(rooms: Mapping[str, Room]) -> type[TyperGroup]:
    """Return the class of a group that has these commands."""

    class LazyGroup(TyperGroup):
        """A group whose commands are imported when they are called."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            commands: Any = Rooms(rooms)
            self.commands = commands

        def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
            """Read the arguments; an error does not quote them."""
            typed.remember(args)
            with typed.cut_from_errors():
                return super().make_context(info_name, args, parent, **extra)

        def invoke(self, ctx: Any) -> Any:
            """Call the command, whose arguments are read on the way."""
            with typed.cut_from_errors():
                return super().invoke(ctx)

        def list_commands(self, ctx: Any) -> list[str]:
            """Return the names in the order of the list."""
            return list(rooms)

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            """Write the list from the rooms' own lines, which imports none of them."""
            with formatter.section("Commands"):
                formatter.write_dl([(name, room.help) for name, room in rooms.items()])

    return LazyGroup
