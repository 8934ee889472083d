"""What CONTRIBUTING says of the code is so: its rooms, its words and its public places."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import consumerkit
from tests.docs.markdown import ROOT, blocks

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGE = ROOT / "consumerkit"
RETIRED_NAMES = {"adrift", "burial", "bury", "convict", "fate", "haunted", "insist", "patience", "solitude"}
"""Words that meant something here alone, and that no name may have, either."""
RETIRED = (
    "anew",
    "nobody",
    "whoever",
    "everybody",
    "meanwhile",
    "in the meantime",
    "take note",
    "let go of",
    "of which",
    "told of",
    "tells of",
    "it is told",
    "died of",
    "lest",
    *sorted(RETIRED_NAMES),
)
"""Words that a reader of English as a second language reads twice, and words that meant something here alone."""
USERS_READ = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOT_FILES = 12
PROGRAMS = ("consumerkit", "tests", "examples", "benchmarks")
TEXTS = {".html", ".json", ".md", ".yaml", ".yml"}


def section(heading: str) -> str:
    return re.split(rf"^### {heading}$", PAGE, flags=re.MULTILINE)[1].split("\n#")[0]


def first_cells(heading: str) -> list[str]:
    rows = [line.split("|")[1].strip() for line in section(heading).splitlines() if line.startswith("|")]
    return rows[2:]


def imported(text: str) -> Iterator[str]:
    """The modules of consumerkit that a program imports; `consumerkit` itself for what that exports."""
    for one in ast.walk(ast.parse(text)):
        if isinstance(one, ast.Import):
            yield from (alias.name for alias in one.names)
        elif isinstance(one, ast.ImportFrom) and one.module is not None:
            exported = consumerkit.__all__ if one.module == "consumerkit" else ()
            for alias in one.names:
                is_module = PACKAGE.joinpath(*one.module.split(".")[1:], f"{alias.name}.py").exists()
                yield f"{one.module}.{alias.name}" if is_module and alias.name not in exported else one.module


def test_each_room_is_on_the_map_and_each_room_of_the_map_is_there() -> None:
    named = [room for cell in first_cells("The rooms") for room in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(one.parent.name for one in PACKAGE.glob("*/__init__.py"))
    assert len(first_cells("The rooms")) <= 10


def test_the_root_stays_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= ROOT_FILES


def test_each_word_of_the_glossary_is_used_in_the_product_and_in_the_documentation() -> None:
    code = "\n".join(one.read_text() for one in PACKAGE.rglob("*.py")).lower()
    pages = "\n".join(one.read_text() for one in USERS_READ).lower()
    words = first_cells("The words")
    assert len(words) == 15
    assert [word for word in words if not (re.search(rf"\b{word}", code) and re.search(rf"\b{word}", pages))] == []


def test_pages_and_examples_import_only_what_is_public() -> None:
    public = set(re.findall(r"`(consumerkit[\w.]*)`", section("What is public")))
    programs = [one.text for page in USERS_READ for one in blocks(page) if one.language == "python"]
    programs += [one.read_text() for one in (ROOT / "examples").glob("*.py")]
    used = {one for text in programs for one in imported(text) if one.partition(".")[0] == "consumerkit"}
    assert "consumerkit.transports.memory" in used
    assert used - public == set()


def lines() -> Iterator[tuple[str, str]]:
    """Each line of all pages, with the page's name, and with the programs and outputs that a page shows."""
    tops = ("", "docs/", "docs/decisions/", "examples/", "examples/*/", "benchmarks/")
    for page in sorted(page for top in tops for page in ROOT.glob(f"{top}*.md")):
        yield from ((page.relative_to(ROOT).as_posix(), line) for line in page.read_text().splitlines())


def test_no_line_of_a_page_is_longer_than_the_codes() -> None:
    assert {page for page, _ in lines()} >= {"README.md", "CHANGELOG.md", "examples/shop/README.md"}
    assert [f"{page}: {line[:60]}" for page, line in lines() if len(line) > 120] == []


def test_no_table_has_more_than_four_columns() -> None:
    rows = [(page, line) for page, line in lines() if line.startswith("|")]
    assert rows
    assert [f"{page}: {line[:60]}" for page, line in rows if len(re.findall(r"(?<!\\)\|", line)) > 5] == []


def sentences(text: str) -> Iterator[str]:
    """The comments and strings of a program; a string without a space is a name."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            yield token.string


def retired(text: str) -> list[str]:
    """The retired words of a text, which may break a line between two words."""
    plain = re.sub(r"\s+(?:# )?", " ", text.lower())
    return [word for word in RETIRED if re.search(rf"\b{word}\b", plain)]


def test_no_page_and_no_sentence_of_the_product_has_a_retired_word() -> None:
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *USERS_READ, *sorted((ROOT / "examples").rglob("*.md"))]
    found = [(page.name, retired(page.read_text())) for page in pages]
    for module in sorted(PACKAGE.rglob("*.py")):
        found += [(module.name, retired(one)) for one in sentences(module.read_text())]
    assert [one for one in found if one[1]] == []


def names(text: str) -> Iterator[str]:
    """The words that a program's names consist of, without their endings."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", token.string):
                yield re.sub("ie(d|s)$", "y", re.sub("(?<!i)(ed|s)$", "", word.lower()))


def programs() -> list[Path]:
    """All programs of the project, except this one, which lists the retired words."""
    return [one for top in PROGRAMS for one in sorted((ROOT / top).rglob("*.py")) if one != Path(__file__)]


def test_no_sentence_of_tests_examples_and_decisions_has_a_retired_word() -> None:
    """The pages that contributors read, without the code in them, and the sentences of all programs."""
    pages = [ROOT / "CHANGELOG.md", *sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    pages += [one for top in ("examples", "deploy") for one in sorted((ROOT / top).rglob("*")) if one.suffix in TEXTS]
    found = [(page.name, retired(re.sub("`[^`]*`", "", page.read_text()))) for page in pages]
    for program in programs():
        found += [(program.name, retired(one)) for one in sentences(program.read_text())]
    assert [one for one in found if one[1]] == []


def test_no_name_has_a_retired_word() -> None:
    found = [(program.name, word) for program in programs() for word in RETIRED_NAMES & {*names(program.read_text())}]
    assert found == []


@pytest.mark.parametrize("name", ["fate", "Fates", "_UNSEEN_PATIENCE", "was_buried", "_insisted", "wait_for_burial"])
def test_a_retired_name_is_found_in_each_form(name: str) -> None:
    assert RETIRED_NAMES & {*names(name)}


def test_a_retired_word_is_found_over_the_end_of_a_line() -> None:
    assert retired("What it\n    # died\n    # of") == ["died of"]
