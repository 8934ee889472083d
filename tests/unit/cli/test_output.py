import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from consumerkit.cli.output import complain, escaped, exit_code, moment, print_json, print_table
from consumerkit.errors import ConfigurationError, ConsumerkitError, StartError


def test_a_pipe_gets_aligned_columns_uncut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("id", "error"), [(1, "x" * 300), (1000, None)])

    assert capsys.readouterr().out.splitlines() == ["id    error", f"1     {'x' * 300}", "1000"]


def test_cells_take_over_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("id",), [("\x1b]0;owned\x07\r\n[red]x",)])

    assert capsys.readouterr().out == "id\n\\x1b]0;owned\\x07\\r\\n[red]x\n"


def test_wide_characters_are_aligned_by_their_width(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "n"), [("日本", 1), ("abcd", 2)])

    assert capsys.readouterr().out.splitlines()[1:] == ["日本  1", "abcd  2"]


@pytest.mark.parametrize(
    "payload, shown",
    [
        (None, "(none)"),
        (b"", ""),
        (b'{"a": 1}', '{"a": 1}'),
        ("é\u202e".encode(), r"é\u202e"),
        (b"\xff\x00\x1b[2J", r"\xff\x00\x1b[2J"),
    ],
)
def test_payloads_are_shown_as_text_where_they_are_text(payload: bytes | None, shown: str) -> None:
    assert escaped(payload) == shown


def test_times_are_utc_whatever_the_database_returns() -> None:
    there = timezone(timedelta(hours=2))
    assert moment(datetime(2026, 1, 2, 5, 4, 5, tzinfo=there)) == "2026-01-02 03:04:05Z"
    assert moment(datetime(2026, 1, 2, 3, 4, 5)) == "2026-01-02 03:04:05Z"  # noqa: DTZ001 - as SQLite returns it
    assert moment(None) == ""


def test_json_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"at": datetime(2026, 1, 2, tzinfo=UTC), "value": b"\xff\x1b"}, {"a": "\x1b"}])

    assert capsys.readouterr().out.splitlines() == [
        '{"at": "2026-01-02 00:00:00Z", "value": "\\\\xff\\u001b"}',
        '{"a": "\\u001b"}',
    ]


def test_errors_are_one_line_and_an_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    complain(ConsumerkitError("two\nlines \x1b[2J"))

    assert capsys.readouterr().err == "error: two\\nlines \\x1b[2J\n"
    assert [exit_code(kind("x")) for kind in (ConfigurationError, StartError, ConsumerkitError)] == [2, 2, 1]


def test_a_terminal_gets_a_table_that_fits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    since = datetime(2026, 1, 2, tzinfo=UTC)

    print_table(("id", "dead since", "error"), [(1, since, "\x1b[2J " + "no answer " * 30)])

    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) <= 80 for line in lines)
    assert any("2026-01-02 00:00:00Z" in line for line in lines)
    assert any("\\x1b[2J" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


MOMENT = datetime(2026, 1, 2, tzinfo=UTC)
TITLES = ("id", "dead since", "handler", "reason", "message ID", "redrives", "error")
LETTER = (7, MOMENT, "book-order", "exhausted", "m-14", 0, "orders.BankAway: the bank does not answer for o-14")


def shown_at(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(TITLES, [LETTER, (*LETTER[:4], None, *LETTER[5:])])
    return [re.sub("\x1b\\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("width", range(100, 160, 7))
def test_a_table_breaks_no_word(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown_at(width, monkeypatch, capsys)
    assert all(len(line) <= width for line in lines)
    words = {word for cell in LETTER for word in (cell.split() if isinstance(cell, str) else ())}
    assert words <= {word for line in lines for word in line.split()}
    assert any("2026-01-02 00:00:00Z" in line and "book-order" in line for line in lines)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_terminal_too_narrow_for_a_table_gets_every_column_in_a_line(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = [
        "id          7",
        "dead since  2026-01-02 00:00:00Z",
        "handler     book-order",
        "reason      exhausted",
        "message ID  m-14",
        "redrives    0",
        "error       orders.BankAway: the bank does not answer for o-14",
    ]
    assert shown_at(width, monkeypatch, capsys) == [*record, "", *record[:4], "message ID", *record[5:]]


def test_a_column_of_single_words_stays_whole_where_another_can_wrap(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    titles = ("letters", "last ID", "handler", "error type", "place", "oldest", "newest")

    print_table(titles, [(5, 118, "book-order", "consumerkit.errors.Reject", "orders.py:31 in handle", MOMENT, MOMENT)])

    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert any("book-order   consumerkit.errors.Reject   orders.py:31   2026-01-02 00:00:00Z" in line for line in lines)
