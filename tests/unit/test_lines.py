"""How the tests read a file that another process still writes."""

from pathlib import Path

from tests.lines import Lines, whole_lines


def test_a_line_is_returned_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = Lines(path)
    assert lines.added() == whole_lines(path) == []
    with path.open("ab", buffering=0) as file:
        file.write("[1, “a”]\n[2, “".encode()[:-1])
        assert lines.added() == whole_lines(path) == ["[1, “a”]"]
        assert lines.added() == []
        file.write("“".encode()[-1:] + "b”]\n".encode())
    assert lines.added() == ["[2, “b”]"]
    assert whole_lines(path) == ["[1, “a”]", "[2, “b”]"]
