"""`python -m tests.stress`: new seeds for some minutes, or one seed again."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg import sql

from tests.services import PostgresServer
from tests.stress.database import FileStore, PostgresStore, Store, create_tables
from tests.stress.draw import plan
from tests.stress.mutants import MUTANTS
from tests.stress.plan import Plan
from tests.stress.run import Run, Verdict


class Stage:
    """Gives each run a database of its own, copied from one that has all tables."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._template = server.create_database()
        asyncio.run(create_tables(server.url(self._template)))

    @contextlib.contextmanager
    def store(self, wanted: Plan) -> Iterator[Store]:
        """A database with all tables, for the `with` block."""
        if wanted.database == "sqlite":
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
                file = FileStore(Path(directory) / "stress.sqlite")
                asyncio.run(create_tables(file.url))
                yield file
            return
        name = f"ck_{uuid4().hex[:12]}"
        self._execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(self._template))
        )
        store = PostgresStore(self._server, name, wanted.driver)
        try:
            store.prepare(wanted)
            yield store
        finally:
            store.close()
            self._server.drop_database(name)

    def close(self) -> None:
        """Drop the database that others are copied from."""
        self._server.drop_database(self._template)

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._server.dsn("postgres"), autocommit=True) as connection:
            connection.execute(statement)


def run_one(stage: Stage, seed: int) -> Verdict:
    """Run one seed."""
    wanted = plan(seed)
    with stage.store(wanted) as store:
        return asyncio.run(Run(wanted, store).go())


def command_for(seed: int, mutant: str) -> str:
    """The one command that runs a seed again."""
    return (
        f"make stress SEED={seed}"
        if not mutant
        else f".venv/bin/python -m tests.stress --seed {seed} --mutant {mutant}"
    )


def told(seed: int, verdict: Verdict, mutant: str) -> str:
    """Return the result of a seed; in full if something is wrong."""
    wanted = plan(seed)
    word = "FAILED" if verdict.problems else "void" if verdict.void else "passed"
    line = (
        f"seed {seed}: {word} in {verdict.seconds:.1f} s ({wanted.profile}, {', '.join(wanted.expected) or 'no fault'})"
    )
    if verdict.void and not verdict.problems:
        line += f"; did not fire: {', '.join(verdict.void)}"
    if not verdict.problems:
        return line
    parts = [line, wanted.shown(), *(f"PROBLEM: {problem}" for problem in verdict.problems[:12])]
    parts += [f"  event: {word}" for word in verdict.last_words]
    return "\n".join([*parts, f"again: {command_for(seed, mutant)}"])


def _marks(wanted: Plan) -> set[str]:
    faulty = ["message faults"] if wanted.message_faults else []
    return {wanted.profile, wanted.ordering, *faulty, *wanted.expected}


def first_seed() -> int:
    """Return a new seed, made from the commit and the time."""
    with contextlib.suppress(OSError):
        commit = subprocess.run(["git", "rev-parse", "--short=6", "HEAD"], capture_output=True, text=True, check=False)
        if commit.returncode == 0:
            return int(commit.stdout, 16) * 1000 + int(time.time()) % 1_000_000
    return int(time.time())


def main(arguments: list[str] | None = None) -> int:
    """Run seeds; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--first", type=int, help="the first of many; by the commit and the time, if not given")
    parser.add_argument("--minutes", type=float, default=1.0, help="begin new seeds for so long")
    parser.add_argument("--count", type=int, help="run so many seeds, instead")
    parser.add_argument(
        "--having", default="", help="of many, only those of this profile, order or database, or with this fault"
    )
    parser.add_argument("--mutant", choices=["", *MUTANTS], default="", help="take this rule out of the product")
    parser.add_argument("--keep-going", action="store_true", help="go on after a seed that fails")
    parser.add_argument("--verbose", action="store_true", help="log what the workers tell")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if chosen.verbose else logging.CRITICAL)
    if chosen.mutant:
        MUTANTS[chosen.mutant]()
    with PostgresServer.find_or_start() as server:
        stage = Stage(server)
        try:
            return _many(stage, chosen) if chosen.seed is None else _single(stage, chosen)
        finally:
            stage.close()


def _single(stage: Stage, chosen: argparse.Namespace) -> int:
    print(plan(chosen.seed).shown(), flush=True)
    verdict = run_one(stage, chosen.seed)
    print(told(chosen.seed, verdict, chosen.mutant))
    print(f"fired: {dict(verdict.fired)}")
    return int(bool(verdict.problems))


class Summary:
    """Counts the results of seeds."""

    def __init__(self) -> None:
        self.failed: list[int] = []
        self.words: Counter[str] = Counter()
        self._planned: Counter[str] = Counter()
        self._void: Counter[str] = Counter()
        self._fired: Counter[str] = Counter()

    def add(self, seed: int, verdict: Verdict) -> None:
        """Count one seed."""
        self.words["failed" if verdict.problems else "void" if verdict.void else "passed"] += 1
        self.failed += [seed] if verdict.problems else []
        self._planned.update(set(plan(seed).expected))
        self._void.update(verdict.void)
        self._fired += verdict.fired

    def shown(self) -> str:
        """Return the counts, for each fault how often it took effect, and in how many seeds it did not."""
        lines = [f"stress: {self.words.total()} seeds: {dict(self.words)}"]
        for fault in sorted(self._planned | self._fired):
            planned, void = self._planned[fault], self._void[fault]
            lines.append(f"  {fault}: fired {self._fired[fault]} times; planned in {planned} seeds, void in {void}")
        return "\n".join(lines)


def _many(stage: Stage, chosen: argparse.Namespace) -> int:
    first = first_seed() if chosen.first is None else chosen.first
    until = time.monotonic() + chosen.minutes * 60
    seed, summary = first, Summary()
    print(f"stress: seeds from {first} on", flush=True)
    while seed - first < chosen.count if chosen.count else time.monotonic() < until or not summary.words["passed"]:
        if not chosen.having or chosen.having in _marks(plan(seed)):
            verdict = run_one(stage, seed)
            summary.add(seed, verdict)
            print(told(seed, verdict, chosen.mutant), flush=True)
            if verdict.problems and not chosen.keep_going:
                break
        seed += 1
    print(summary.shown())
    for one in summary.failed:
        print(f"again: {command_for(one, chosen.mutant)}")
    return int(bool(summary.failed))


if __name__ == "__main__":
    sys.exit(main())
