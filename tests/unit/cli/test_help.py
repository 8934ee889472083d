"""The help of the command line, as it stands in a terminal of 80 columns."""

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from consumerkit.cli.main import app


def _help(path: tuple[str, ...]) -> str:
    # Two columns are left free at the right of a terminal, but not by the runner.
    answer = CliRunner().invoke(app, [*path, "--help"], terminal_width=78)
    assert answer.exit_code == 0
    return answer.output


def _groups(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that has commands of its own."""
    commands = getattr(command, "commands", None)
    if commands is not None:
        yield path
        for name, inner in commands.items():
            yield from _groups(inner, (*path, name))


@pytest.mark.parametrize(
    "path", [*_groups(typer.main.get_command(app))], ids=lambda path: " ".join(path) or "consumerkit"
)
def test_every_command_is_told_in_a_whole_sentence(path: tuple[str, ...]) -> None:
    told = _help(path).partition("Commands:")[2].rstrip().splitlines()[1:]
    assert told
    assert [line for line in told if "..." in line] == []


def _leaves(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that does something."""
    commands = getattr(command, "commands", None)
    if commands is None:
        yield path
    for name, inner in (commands or {}).items():
        yield from _leaves(inner, (*path, name))


COMMANDS = [path for path in _leaves(typer.main.get_command(app)) if path != ("demo",)]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_ends_its_help_with_examples_that_it_takes(path: tuple[str, ...]) -> None:
    lines = [line.strip() for line in _help(path).partition("For example:")[2].strip().splitlines()]
    assert lines
    assert lines[0].startswith(" ".join(("consumerkit", *path)))
    for line in lines:
        assert len(line) <= 76
        _, *words = shlex.split(line.partition(" > ")[0])
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(line, words)
