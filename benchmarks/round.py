"""One round, in a process of its own: `python -m benchmarks.round NAME`, told on stdin as JSON."""

import asyncio
import importlib
import json
import sys

from benchmarks.competitors import Course, Run
from benchmarks.meter import Meter

PLACES = {
    "faststream": ("on_faststream", "run"),
    "bare-message": ("bare_message", "run"),
    "bare-group": ("bare_group", "run"),
    "confluent": ("on_consumerkit", "run_confluent"),
    "aiokafka": ("on_consumerkit", "run_aiokafka"),
}
STEP_PLACES = {
    "one-by-one": ("with_calls", "run_one_by_one"),
    "gather": ("with_calls", "run_gather"),
    "steps": ("with_calls", "run_steps"),
    "steps-at-once": ("with_calls", "run_steps_at_once"),
    "without-steps": ("with_calls", "run_without_steps"),
}


def main() -> None:
    """Run the round and print what was measured as JSON."""
    module, name = (PLACES | STEP_PLACES)[sys.argv[1]]
    given = json.load(sys.stdin)
    run: Run = getattr(importlib.import_module(f"benchmarks.competitors.{module}"), name)
    meter = Meter(given["warm_up"], given["messages"])
    asyncio.run(_run(run, Course(**given["course"]), meter))
    print(json.dumps(meter.result()._asdict()))


async def _run(run: Run, course: Course, meter: Meter) -> None:
    await run(course, meter)


if __name__ == "__main__":
    main()
