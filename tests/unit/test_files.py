"""No file that the product opens by itself for writing is reached through a link."""

import os
from pathlib import Path

import pytest

from consumerkit import failpoints
from consumerkit.demo.reports import Reporter


def test_a_link_in_place_of_a_log_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        Reporter(link)._write(done=1)
    monkeypatch.setenv("CONSUMERKIT_FAILPOINT_LOG", str(link))
    with pytest.raises(OSError, match="symbolic links"):
        failpoints._fire("here", "raise")
    assert target.read_text() == "kept"


def test_each_opening_for_writing_refuses_links() -> None:
    root = Path(failpoints.__file__).parent
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        for line in path.read_text().splitlines()
        if "os.open(" in line and "O_NOFOLLOW" not in line and "_FLAGS" not in line and "os.devnull" not in line
    ]
    assert found == []
    assert os.O_NOFOLLOW
