"""The help of the command line, as it stands in a terminal of 80 columns."""

import os
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from consumerkit.cli.main import app


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
    answer = CliRunner(env={**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80"}).invoke(app, [*path, "--help"])
    assert answer.exit_code == 0
    told = answer.output.partition("Commands:")[2].rstrip().splitlines()[1:]
    assert told
    assert [line for line in told if "..." in line] == []
