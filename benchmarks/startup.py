"""`python -m benchmarks.startup`: the CPU time of an import and of the command's help, beside SQLAlchemy's import.

Each runs in processes of its own, one after the other in turn; the least of its times counts, without that of an empty
program. What is compared with is `import sqlalchemy.ext.asyncio`, which every program with this library needs.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

PROGRAMS = {
    "nothing": ["-c", "pass"],
    "import sqlalchemy.ext.asyncio": ["-c", "import sqlalchemy.ext.asyncio"],
    "import consumerkit": ["-c", "import consumerkit"],
    "from consumerkit import Worker": ["-c", "from consumerkit import Worker"],
    "consumerkit --help": ["-m", "consumerkit", "--help"],
}


def cpu_seconds(arguments: list[str]) -> float:
    """Run Python with these arguments; return the CPU time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, arguments in PROGRAMS.items():
            found[name].append(cpu_seconds(arguments))
    nothing = min(found.pop("nothing"))
    base = min(found["import sqlalchemy.ext.asyncio"]) - nothing
    for name, seconds in found.items():
        least = min(seconds) - nothing
        print(f"{name:32} {least * 1000:6.0f} ms  {least / base:.2f}")


if __name__ == "__main__":
    main()
