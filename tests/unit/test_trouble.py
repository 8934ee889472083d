"""Trouble is reported in words, and each part that reports it reports its end, too."""

import ast
from pathlib import Path

import consumerkit

PRODUCT = Path(consumerkit.__file__).parent
ENDED_ELSEWHERE = {
    "engine/lanes/announcements.py": "of the database: `worker.reports` ends it by what proves that it works",
    "engine/partitions/inquiry.py": "of the database and the broker: as above",
}


def made(source: str, name: str) -> list[ast.Call]:
    """The calls that make an event of this name."""
    return [
        call
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == name
    ]


def test_a_part_that_reports_trouble_reports_its_end() -> None:
    modules = {path.relative_to(PRODUCT).as_posix(): path.read_text() for path in PRODUCT.rglob("*.py")}
    without = {name for name, source in modules.items() if made(source, "Trouble") and not made(source, "TroubleOver")}
    assert without == set(ENDED_ELSEWHERE)


def test_trouble_is_reported_in_words() -> None:
    """The class of an error alone says nothing about the way out."""
    found = {
        path.relative_to(PRODUCT).as_posix()
        for path in PRODUCT.rglob("*.py")
        if made(source := path.read_text(), "Trouble") and "type(error).__name__" in source
    }
    # It names what the undo raised, in an error of ours.
    assert found <= {"engine/undo_calls.py"}
