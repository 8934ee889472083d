"""`--reload`: what it watches, and what it refuses."""

import sys
from pathlib import Path
from typing import Any

import pytest

from consumerkit.cli import reloading, run
from consumerkit.cli.main import run as consumerkit
from consumerkit.supervisor import Supervisor
from consumerkit.supervisor.changes import told


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and beside it a package that Python also finds; watchfiles need not be installed."""
    (tmp_path / "here").mkdir()
    (tmp_path / "lib" / "reloadable_shop").mkdir(parents=True)
    (tmp_path / "lib" / "reloadable_shop" / "__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "lib" / "reloadable_module.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(reloading, "check_watchfiles", lambda: None)
    return tmp_path


@pytest.mark.parametrize(
    "target, given, directories",
    [
        ("reloadable_shop.worker:worker", [], ["here", "lib/reloadable_shop"]),
        ("reloadable_module:worker", [], ["here", "lib"]),
        ("not_there_yet:worker", [], ["here"]),
        ("reloadable_shop.worker:worker", ["../lib"], ["lib"]),
    ],
)
def test_the_working_directory_and_the_targets_package_are_watched_and_nothing_is_imported(
    target: str, given: list[str], directories: list[str], here: Path
) -> None:
    assert reloading.watched(target, given) == [here / name for name in directories]


def test_changes_are_told_by_their_paths_from_here(here: Path) -> None:
    assert told([here / "here" / "shop" / "a.py"]) == "shop/a.py changed"
    assert told([here / "lib" / "b.py", here / "here" / "c.py"]) == "c.py and 1 more changed"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["shop:worker", "--reload-dir", "src"], "error: --reload-dir needs --reload"),
        (["shop:worker", "--reload", "--reload-dir", "src"], "error: --reload-dir 'src': there is no such directory"),
        (["shop.py", "--reload"], "error: target 'shop.py': write module:attribute, such as shop:worker"),
    ],
)
def test_what_no_change_mends_is_refused(
    arguments: list[str], said: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["consumerkit", "run", *arguments])
    with pytest.raises(SystemExit) as ended:
        consumerkit()
    assert (ended.value.code, capsys.readouterr().err) == (2, f"{said}\n")


def test_without_watchfiles_it_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    monkeypatch.setattr(sys, "argv", ["consumerkit", "run", "shop:worker", "--reload"])
    with pytest.raises(SystemExit) as ended:
        consumerkit()
    said = "error: --reload needs watchfiles; install consumerkit[reload], such as: pip install 'consumerkit[reload]'\n"
    assert (ended.value.code, capsys.readouterr().err) == (2, said)


def test_one_process_has_a_supervisor_with_reload(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[list[str], int, Any]] = []

    class Made(Supervisor):
        def __init__(self, command: Any, workers: int, **options: Any) -> None:
            super().__init__(command, workers, **options)
            made.append((command, workers, options["changes"]))

        async def run(self) -> int:
            return 0

    monkeypatch.setattr(run, "Supervisor", Made)
    monkeypatch.setattr(sys, "argv", ["consumerkit", "run", "shop:worker", "--reload"])
    with pytest.raises(SystemExit) as ended:
        consumerkit()
    [(command, workers, changes)] = made
    assert (ended.value.code, workers) == (0, 1)
    assert changes is not None
    assert not any("reload" in word for word in command)
