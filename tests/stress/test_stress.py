"""New seeds on the product as it is; and on one that lacks a rule, where some must fail.

Each runs in a process of its own: what a seed leaves behind that stands still ends with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import PostgresServer
from tests.stress.mutants import MUTANTS, SEEDS

ROOT = Path(__file__).parents[2]
# Seeds that have found something, or stand for a kind of run; half a minute all together.
KEPT = {
    2: "relayed: an outage while thirty messages are under way",
    6: "calm: a rebalance, a restart, a new partition",
    111: "crossed: the same IDs in two partitions, in opposite order",
    13590977643: "calm: two lanes, one of them ahead when the partition is handed over",
    16633851198: "general: pruning, a rebalance, control records, no leader",
    16633851222: "general: two zombies",
}
# So long new seeds are begun; with the last one it is about a minute.
MINUTES = 0.85


def stress(postgres: PostgresServer, *arguments: str, within: float) -> tuple[int, str]:
    """Run the command; return its status and what it said."""
    environment = {**os.environ, "CONSUMERKIT_TEST_POSTGRES": postgres.admin_dsn}
    command = [sys.executable, "-m", "tests.stress", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=within, check=False
    )
    print(done.stdout + done.stderr)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.variant
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_minute_of_new_seeds_finds_nothing(postgres: PostgresServer) -> None:
    status, said = stress(postgres, "--minutes", str(MINUTES), within=1700)
    assert status == 0, said


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", KEPT)
def test_a_seed_that_is_kept_finds_nothing(postgres: PostgresServer, seed: int) -> None:
    status, said = stress(postgres, "--seed", str(seed), within=1700)
    assert status == 0, said


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_product_without_one_of_its_rules_is_found_out(postgres: PostgresServer, mutant: str) -> None:
    seeds, word = SEEDS[mutant]
    for seed in seeds:
        status, said = stress(postgres, "--seed", str(seed), "--mutant", mutant, within=1700)
        if status == 1 and any(word in line for line in said.splitlines() if line.startswith("PROBLEM:")):
            return
    pytest.fail(f"none of the seeds {seeds} shows {word!r} without {mutant}")
