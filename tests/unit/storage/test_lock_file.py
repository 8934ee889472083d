"""The relay's lock file is consumerkit's own, whatever other users put in its place."""

import os
from pathlib import Path

import pytest

from consumerkit.errors import StartError
from consumerkit.storage.dialects.sqlite import SQLite
from consumerkit.storage.tables import DEFAULT_TABLES


def lock(path: Path) -> Path:
    """The path of the lock file, found by creating it once."""
    with SQLite(DEFAULT_TABLES).relay_guard(str(path)) as mine:
        assert mine
    (found,) = path.parent.glob("*-relay")
    found.unlink()
    return found


def refused(path: Path) -> None:
    with pytest.raises(StartError, match=r"the lock file .* remove"), SQLite(DEFAULT_TABLES).relay_guard(str(path)):
        pytest.fail("the guard opened it")


def test_a_link_is_not_followed_and_nothing_is_made_where_it_leads(tmp_path: Path) -> None:
    database, target = tmp_path / "books.sqlite", tmp_path / "target"
    lock(database).symlink_to(target)
    refused(database)
    assert not target.exists()


def test_a_second_name_of_another_file_is_refused(tmp_path: Path) -> None:
    database, target = tmp_path / "books.sqlite", tmp_path / "target"
    target.write_text("somebody's")
    lock(database).hardlink_to(target)
    refused(database)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    database = tmp_path / "books.sqlite"
    os.mkfifo(lock(database))
    refused(database)


def test_anothers_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "books.sqlite"
    lock(database).touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    refused(database)
