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


def main() -> None:
    """Run the round and print what was measured as JSON."""
    module, name = PLACES[sys.argv[1]]
    given = json.load(sys.stdin)
    run: Run = getattr(importlib.import_module(f"benchmarks.competitors.{module}"), name)
    meter = Meter(given["warm_up"], given["messages"])
    asyncio.run(_run(run, Course(**given["course"]), meter))
    print(json.dumps(meter.result()._asdict()))


async def _run(run: Run, course: Course, meter: Meter) -> None:
    await run(course, meter)


if __name__ == "__main__":
    main()
