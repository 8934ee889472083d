"""A set of commands that imports a command when it is called: the list of commands needs no imports."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

from consumerkit.cli import typed


class Room(NamedTuple):
    """The place where a command, or a set of commands, is defined.

    Attributes:
        place: `module:attribute` of a `typer.Typer`, or of a function that is the command.
        help: The line in the list of commands. A test compares it with the command's own help.
        epilog: The end of the help, where the place is a function.
    """

    place: str
    help: str
    epilog: str | None = None

    def load(self, name: str) -> Any:
        """Import the command and return it under this name."""
        module, _, attribute = self.place.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        outer = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        outer.callback()(_nothing)  # with a callback, typer keeps even a single command as a subcommand
        if isinstance(found, typer.Typer):
            outer.add_typer(found, name=name)
        else:
            outer.command(name, epilog=self.epilog)(found)
        group: Any = typer.main.get_command(outer)
        return group.commands[name]


class Rooms(Mapping[str, Any]):
    """The commands by name; each is imported at its first use."""

    def __init__(self, rooms: Mapping[str, Room]) -> None:
        self._rooms = rooms

    def __getitem__(self, name: str) -> Any:
        """Import and return a command."""
        return self._rooms[name].load(name)

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order of the list."""
        return iter(self._rooms)

    def __len__(self) -> int:
        """Return the number of commands."""
        return len(self._rooms)


def _nothing() -> None:
    """Do nothing before a command."""


def lazy_group(rooms: Mapping[str, Room]) -> type[TyperGroup]:
    """Return a class of typer group with these commands."""

    class LazyGroup(TyperGroup):
        """A group whose commands are imported when they are called."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            commands: Any = Rooms(rooms)
            self.commands = commands

        def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
            """Parse the arguments; an error does not quote them."""
            typed.remember(args)
            with typed.cut_from_errors():
                return super().make_context(info_name, args, parent, **extra)

        def invoke(self, ctx: Any) -> Any:
            """Call the command; an error in parsing its arguments does not quote them."""
            with typed.cut_from_errors():
                return super().invoke(ctx)

        def list_commands(self, ctx: Any) -> list[str]:
            """Return the names in the order of the list."""
            return list(rooms)

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            """Write the list from the rooms' `help`, without importing any command."""
            with formatter.section("Commands"):
                formatter.write_dl([(name, room.help) for name, room in rooms.items()])

    return LazyGroup
