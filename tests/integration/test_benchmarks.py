"""The benchmark runs, and every competitor in it keeps the promise that it is timed at."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.round import PLACES
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
    output = tmp_path / "result.json"
    servers = {"CONSUMERKIT_TEST_KAFKA": kafka.bootstrap, "CONSUMERKIT_TEST_POSTGRES": postgres.admin_dsn}
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "2", "--output", str(output)]

    done = subprocess.run(
        [*command, "--only", *PRESENT],
        cwd=ROOT,
        env={**os.environ, **servers},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(output.read_text())
    # `Stage.check` has compared the rows of each with the log; these are how many there were.
    assert set(told["processed_exactly_once"]) == set(PRESENT)
    for name, processed in told["processed_exactly_once"].items():
        assert processed >= sum(one[name]["messages"] for one in told["rounds"])
