"""The shell completes the commands; each test names its shell, so the machine's own does not matter."""

import pytest
from typer.testing import CliRunner

from consumerkit.cli.main import app


@pytest.mark.parametrize(
    "shell, line",
    [("bash", "complete -o default -F _consumerkit_completion consumerkit"), ("zsh", "#compdef consumerkit")],
)
def test_the_script_for_a_shell_is_printed(monkeypatch: pytest.MonkeyPatch, shell: str, line: str) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")

    answer = CliRunner().invoke(app, ["--show-completion", shell], prog_name="consumerkit")

    assert answer.exit_code == 0
    assert line in answer.output.splitlines()
    assert "_CONSUMERKIT_COMPLETE=complete_" in answer.output


@pytest.mark.parametrize(
    "typed, completed",
    [
        ("consumerkit pu", "publish"),
        ("consumerkit topics c", "check create"),
        ("consumerkit publish --par", "--partition"),
    ],
)
def test_commands_and_options_are_completed(monkeypatch: pytest.MonkeyPatch, typed: str, completed: str) -> None:
    monkeypatch.setenv("_CONSUMERKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))

    answer = CliRunner().invoke(app, [], prog_name="consumerkit")

    assert (answer.exit_code, answer.output.split()) == (0, completed.split())
