"""Who may begin while the brake is on."""

import asyncio

from consumerkit.engine.lanes.brake_gate import BrakeGate
from consumerkit.events import Announcer
from consumerkit.policies.brake import Brake
from consumerkit.policies.wait import fixed


async def test_lanes_take_turns_at_probing() -> None:
    gate = BrakeGate(Brake(allowance=1, probe=fixed(0.01)), Announcer(()))
    while gate.spend():
        pass
    turns: list[str] = []

    async def works(lane: str, *, slow: bool) -> None:
        interrupted = asyncio.Event()
        while len(turns) < 40:
            if not await gate.enter(lane, interrupted):
                continue
            turns.append(lane)
            if slow:
                await asyncio.sleep(0.005)
            gate.leave(lane)

    await asyncio.gather(works("a", slow=False), works("b", slow=True), works("c", slow=False))
    assert all({"a", "b", "c"} <= set(turns[at : at + 6]) for at in range(len(turns) - 6)), turns
