"""README and every page under docs/ are followed block by block, on the real Kafka and the real PostgreSQL."""

import re
from pathlib import Path
from uuid import uuid4

import pytest

from tests.docs.markdown import LANGUAGES, ROOT, Reader, blocks
from tests.services import KafkaServer, PostgresServer

ALL = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# CONTRIBUTING describes how developers run the tests, this one included.
PAGES = [page for page in ALL if any(blocks(page)) and page.name != "CONTRIBUTING.md"]

# Blocks that no test can run, by their first line, with the reason.
UNRUNNABLE = {
    "$ docker compose up --wait": "there is no container engine where the tests run",
    "$ python3 -m venv venv": "installs from the network; `make` does the same in a fresh clone",
    "$ pip install '.[postgresql]'": "installs from the network; `make` does the same in a fresh clone",
    "$ consumerkit run shop.worker:worker --workers 4": "shows the form of a command; README and quickstart run one",
    "$ consumerkit dead-letters import shop.worker:worker --handler credit-account --topic payments-dlt --dry-run": (
        "wants a topic that another framework wrote; tests/integration/test_cli_import.py writes one and runs this"
    ),
    "$ consumerkit rewind credit-account shop.worker:worker --topic payments.captured --to start --dry-run": (
        "shows the form of commands; tests/integration/test_cli_positions.py runs them"
    ),
    "$ consumerkit parked groups                     # by handler and last error": (
        "shows the form of commands; tests/integration/test_cli_parked.py runs them"
    ),
    "$ consumerkit undos list                        # which steps wait to be undone, and since when": (
        "shows the form of commands; tests/integration/test_rows_left_behind.py runs them"
    ),
    '$ consumerkit dead-letters end-calls --handler ship --note "customers were told by hand, ticket 4711"': (
        "shows the form of a command; tests/integration/test_dead_letter_calls.py runs it"
    ),
    "from aws_msk_iam_sasl_signer import MSKAuthTokenProvider": (
        "wants a package of AWS; test_kafka_security_page.py runs it"
    ),
    "from azure.identity import DefaultAzureCredential": "wants Azure's; test_kafka_security_page.py runs it",
    "$ make demo": "the demo has tests of its own, and `make test` is what runs this one",
}

NAMES = ("payments.captured", "credit-account", "receipts")


def _runs(text: str) -> bool:
    return text.partition("\n")[0] not in UNRUNNABLE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.timeout(900)
def test_a_reader_who_follows_the_page_gets_what_it_says(
    page: Path, tmp_path: Path, kafka: KafkaServer, postgres: PostgresServer, database: str
) -> None:
    found = list(blocks(page))
    assert {block.language for block in found} <= LANGUAGES
    suffix = uuid4().hex[:8]
    renamed = {name: f"{name}-{suffix}" for name in NAMES} | {
        "localhost:9092": kafka.bootstrap,
        "postgresql+psycopg://consumerkit:consumerkit@localhost:5432/consumerkit": postgres.url(database),
    }
    reader = Reader(tmp_path, renamed)
    for block in found:
        if _runs(block.text):
            reader.follow(block)


def test_every_exception_is_still_in_some_page() -> None:
    first_lines = {block.text.partition("\n")[0] for page in PAGES for block in blocks(page)}
    assert set(UNRUNNABLE) <= first_lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_gives_a_password_as_an_argument(page: Path) -> None:
    # Other users of the machine see arguments; variables they do not.
    assert not re.findall(r"--database \S+://", page.read_text())


_LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]+)?\)")


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not anchor or anchor[1:] in _anchors(file), f"{target}{anchor}"


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
