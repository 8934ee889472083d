"""The command line as a user calls it, in this process: arguments in, exit status and output out."""

import sys
from typing import NamedTuple

import pytest

from consumerkit.cli.main import run


class Answer(NamedTuple):
    """The output and exit status of a command."""

    code: int
    out: str
    err: str


class CommandLine:
    """Calls `consumerkit` with arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Answer:
        self._capsys.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["consumerkit", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        code = ended.value.code
        return Answer(code if isinstance(code, int) else 0, *self._capsys.readouterr())
