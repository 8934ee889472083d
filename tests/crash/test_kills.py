"""The promise under faults: workers are killed, frozen and replaced on a real broker and database."""

from pathlib import Path
from typing import get_args

import pytest

from consumerkit.failpoints import NAMES
from consumerkit.transports.kafka import Client
from tests.crash.director import Plan
from tests.crash.scenario import Scenario
from tests.crash.workload import HANDING_OVER
from tests.services import KafkaServer, PostgresServer

pytestmark = pytest.mark.calm

NAMED = ("in_handler:kill", "before_commit:kill", "before_offset_commit:kill", "after_dead_letter_commit:kill")


class Servers:
    """What a scenario runs on."""

    def __init__(self, kafka: KafkaServer, postgres: PostgresServer, topic: str, directory: Path) -> None:
        self._arguments = (kafka, postgres, directory, topic)

    def check(self, plan: Plan) -> None:
        """Run a plan; the promise must hold, and the run must count."""
        verdict = Scenario(plan, *self._arguments).run()
        print(verdict)
        assert not verdict.problems, str(verdict)
        assert not verdict.void, str(verdict)


@pytest.fixture
def servers(kafka: KafkaServer, postgres: PostgresServer, topic_name: str, tmp_path: Path) -> Servers:
    return Servers(kafka, postgres, topic_name, tmp_path)


@pytest.mark.crash
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("transport", get_args(Client))
def test_each_id_has_one_outcome_whatever_dies(transport: Client, servers: Servers) -> None:
    servers.check(Plan(transport, failpoints=NAMED))


@pytest.mark.matrix
@pytest.mark.crash
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("transport", get_args(Client))
def test_members_that_join_and_leave_hand_over_exactly(transport: Client, servers: Servers) -> None:
    servers.check(
        Plan(
            transport,
            messages=6000,
            slices=12,
            random_kills=0,
            joins=4,
            kinds=HANDING_OVER,
            handed_over=True,
            arm_after=1,
            slow=0.002,
            seed=7,
        )
    )


@pytest.mark.matrix
@pytest.mark.crash
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("transport", get_args(Client))
def test_a_frozen_member_that_wakes_does_no_harm(transport: Client, servers: Servers) -> None:
    servers.check(
        Plan(transport, messages=5000, slices=10, random_kills=0, joins=0, freezes=2, typical_group=20, seed=9)
    )


# In the order of a message's way; what happens at a change of members is apart, since it needs one, and so are steps
# and requests, which this handler has not: see `test_step_kills`, `test_undo_kills` and `test_request_kills`.
WAY = sorted(
    name
    for name in NAMES - {"in_on_assign", "in_on_revoke", "in_shutdown_drain"}
    if not name.startswith(("step_", "undo_", "request_"))
)
SHARE = 4


@pytest.mark.crash
@pytest.mark.matrix
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("part", range(0, len(WAY), SHARE))
@pytest.mark.parametrize("action", ["kill", "exit", "raise", "hang"])
@pytest.mark.parametrize("transport", get_args(Client))
def test_every_failpoint_keeps_the_promise(transport: Client, action: str, part: int, servers: Servers) -> None:
    failpoints = tuple(f"{name}:{action}" for name in WAY[part : part + SHARE])
    servers.check(
        Plan(
            transport,
            messages=16_000,
            slices=32,
            failpoints=failpoints,
            random_kills=1,
            joins=2,
            freezes=1,
            arm_after=1,
            stall_timeout=4.0,
            typical_group=20,
            deadline=1500.0,
        )
    )


@pytest.mark.crash
@pytest.mark.matrix
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("action", ["kill", "exit", "raise", "hang"])
@pytest.mark.parametrize("name", ["in_on_assign", "in_on_revoke", "in_shutdown_drain"])
@pytest.mark.parametrize("transport", get_args(Client))
def test_failpoints_at_a_change_of_members_keep_the_promise(
    transport: Client, name: str, action: str, servers: Servers
) -> None:
    servers.check(
        Plan(
            transport,
            messages=8000,
            slices=24,
            failpoints=(f"{name}:{action}",),
            random_kills=2,
            joins=16,
            arm_after=1,
            stall_timeout=4.0,
            typical_group=10,
            deadline=1500.0,
        )
    )
