"""Each rule taken out of the product is missed by the test that guards it, for the reason that is written beside it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mutants.broken import ROOT, Copy
from tests.mutants.rules import MUTANTS, Mutant
from tests.services import PostgresServer

# S1 to S17, without those that never were: each has a row at least.
RULES = {f"S{number}" for number in range(1, 18)}
IDS = [f"{one.rule} {one.left_out}" for one in MUTANTS]


@pytest.fixture(scope="module")
def copy(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    environment = {"CONSUMERKIT_TEST_POSTGRES": postgres.admin_dsn}
    return Copy(tmp_path_factory.mktemp("product"), environment)


def test_each_rule_has_a_row() -> None:
    assert {one.rule for one in MUTANTS} >= RULES


@pytest.mark.parametrize("mutant", MUTANTS, ids=IDS)
def test_a_rule_stands_where_the_table_says(mutant: Mutant) -> None:
    """Who moves a rule moves its row, and who renames what it uses renames it there."""
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1, mutant.file
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--quiet", "--select", "F821", "-"]
    broken = text.replace(mutant.old, mutant.new).encode()
    found = subprocess.run(ruff, input=broken, capture_output=True, check=False)
    assert found.returncode == 0, f"{mutant.file} has undefined names without the rule: {found.stdout.decode()}"
    file, _, test = mutant.test.partition("::")
    assert not test or f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(), mutant.test


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_with_all_rules_the_tests_pass(copy: Copy) -> None:
    ran = copy.run(*dict.fromkeys(one.test for one in MUTANTS), within=1700)
    assert ran.status == 0, ran.said


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutant", MUTANTS, ids=IDS)
def test_a_rule_that_is_taken_out_is_missed(copy: Copy, mutant: Mutant) -> None:
    ran = copy.without(mutant)
    assert ran.status == 1, ran.said
    assert any(mutant.word in line for line in ran.errors), "\n".join([f"no word of {mutant.word!r}:", *ran.errors])
