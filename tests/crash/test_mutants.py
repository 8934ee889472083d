"""The verdict fails if a rule is removed from the product, and passes if none is: `make test-mutants`."""

from pathlib import Path

import pytest

from tests.crash.director import Plan
from tests.crash.mutants import MUTANTS
from tests.crash.scenario import Scenario
from tests.crash.workload import HANDING_OVER, SWALLOWING
from tests.services import KafkaServer, PostgresServer

pytestmark = pytest.mark.calm

KILLED = Plan(
    "aiokafka",
    messages=6000,
    slices=10,
    failpoints=("before_offset_commit:kill",),
    random_kills=2,
    joins=0,
    typical_group=20,
    seed=11,
)
MOVED = Plan(
    "aiokafka",
    messages=6000,
    slices=12,
    random_kills=0,
    joins=4,
    kinds=HANDING_OVER,
    slow=0.002,
    handed_over=True,
    arm_after=1,
    seed=7,
)
SWALLOWED = Plan(
    "aiokafka", messages=2000, slices=4, random_kills=0, joins=0, kinds=SWALLOWING, typical_group=1, seed=3
)
CROSSED = Plan("aiokafka", messages=8000, slices=8, random_kills=0, joins=0, kinds=(), crossed=True, seed=5)

# Each with the run that is hard on it, and a word of the problem that must be found.
EXPECTED = {
    "claim": (KILLED, "times too many"),
    "finalise": (SWALLOWED, "missing"),
    "sort": (CROSSED, "deadlocks"),
    "drain": (MOVED, "none was killed"),
    "contiguity": (KILLED, "unfinished"),
    "publishing": (KILLED, "is not in its topic"),
}


@pytest.mark.crash
@pytest.mark.matrix
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mutant", ["", *MUTANTS])
def test_the_verdict_fails_on_each_broken_product(
    mutant: str, kafka: KafkaServer, postgres: PostgresServer, topic_name: str, tmp_path: Path
) -> None:
    if not mutant:
        for number, plan in enumerate((KILLED, MOVED, SWALLOWED, CROSSED)):
            directory = tmp_path / str(number)
            directory.mkdir()
            verdict = Scenario(plan, kafka, postgres, directory, f"{topic_name}-{number}").run()
            assert not verdict.problems + verdict.void, f"{plan}\n{verdict}"
        return
    plan, word = EXPECTED[mutant]
    verdict = Scenario(plan.broken(mutant), kafka, postgres, tmp_path, topic_name).run()
    print(verdict)
    assert any(word in problem for problem in verdict.problems), str(verdict)
