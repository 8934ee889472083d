"""The shop with one kill during a call to the outside: its books are still right."""

from pathlib import Path

import pytest

from tests.services import KafkaServer, PostgresServer
from tests.shop.run import Plan, Run

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_the_books_are_right_after_a_kill_between_a_charge_and_its_record(
    kafka: KafkaServer, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    plan = Plan(orders=6, kills=0, web=1, workers=1, failpoint="step_called:kill:2")
    result = Run(plan, postgres.url(database), kafka, tmp_path).play()
    assert [line for line in result.lines if line.wrong] == []
    assert result.killed == {"worker": 1}
    assert len(result.lines) == 9
