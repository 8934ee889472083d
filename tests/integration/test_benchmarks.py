"""The benchmark runs, and every competitor in it keeps the promise that it is timed at."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.round import PLACES, STEP_PLACES
from tests.services import KafkaServer, PostgresServer

ROOT = Path(__file__).parents[2]
# FastStream comes with `make bench` only.
PRESENT = [name for name in PLACES if name != "faststream" or importlib.util.find_spec("faststream")]


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_competitor_processes_each_id_exactly_once(
    kafka: KafkaServer, postgres: PostgresServer, tmp_path: Path
) -> None:
    told = _run(kafka, postgres, tmp_path, "benchmarks", "--rounds", "2", "--only", *PRESENT)

    # `Stage.check` has compared the rows of each with the log; these are how many there were.
    assert set(told["processed_exactly_once"]) == set(PRESENT)
    for name, processed in told["processed_exactly_once"].items():
        assert processed >= sum(one[name]["messages"] for one in told["rounds"])


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_way_to_call_another_service_processes_each_id_exactly_once(
    kafka: KafkaServer, postgres: PostgresServer, tmp_path: Path
) -> None:
    told = _run(kafka, postgres, tmp_path, "benchmarks.steps")

    assert set(told["processed_exactly_once"]) == set(STEP_PLACES)
    for name, processed in told["processed_exactly_once"].items():
        assert processed >= sum(one[name]["messages"] for one in told["rounds"])
    # 20 calls of 50 ms take a second, one after another.
    assert told["rates"]["one-by-one"]["max"] < 20
    assert told["rate_to_one_by_one"]["steps"]["min"] > 2


def _run(kafka: KafkaServer, postgres: PostgresServer, directory: Path, module: str, *options: str) -> dict[str, Any]:
    """Run a benchmark with a few messages, and return what it has measured."""
    output = directory / "result.json"
    servers = {"CONSUMERKIT_TEST_KAFKA": kafka.bootstrap, "CONSUMERKIT_TEST_POSTGRES": postgres.admin_dsn}
    done = subprocess.run(
        [sys.executable, "-m", module, "--quick", "--output", str(output), *options],
        cwd=ROOT,
        env={**os.environ, **servers},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(output.read_text())
    return found
