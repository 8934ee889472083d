"""Reads the examples out of a Markdown file and runs them, in order, in one directory, as a reader would."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = frozenset({"python", "console", "mermaid", "sql", "text"})
_FENCE = re.compile(r"^( *)```(.*)$")
_FILE = re.compile(r"# ([\w/]+\.py)\n")
# What differs from run to run, for the comparison of outputs.
_CHANGING = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)"), "(moment)"),
    (re.compile(r"\[\d+\] "), "(process) "),
    (re.compile(r"\b\d+\.\d+ (m?s)\b"), r"(time) \1"),
)
_WITHIN = 120.0


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    file: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(file: Path) -> Iterator[Block]:
    """Every fenced block of a file."""
    begun: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if fence is None:
            lines.append(line)
        elif begun is None:
            begun, lines = (number, fence[2].strip(), fence[1]), []
        else:
            yield Block(file, begun[0], begun[1], textwrap.dedent("\n".join(lines)) + "\n")
            begun = None
    assert begun is None, f"{file.name}: a block is not closed"


class Reader:
    """Follows a page: writes its files, runs its programs and commands, compares their output.

    Args:
        directory: Where to; empty at first.
        renamed: What stands in for names and addresses of the page, so that test runs do not meet on one server.
    """

    def __init__(self, directory: Path, renamed: Mapping[str, str]) -> None:
        self._directory = directory
        self._renamed = dict(sorted(renamed.items(), key=lambda item: -len(item[0])))
        self._namespace: dict[str, object] = {"__name__": "page"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "300"}

    def follow(self, block: Block) -> None:
        """Do what a block says."""
        if block.language == "python":
            self._write_or_run(block)
        elif block.language == "console":
            for command, expected in commands(block.text):
                self._command(block, command, expected)

    def _write_or_run(self, block: Block) -> None:
        text = self._given(block.text)
        if named := _FILE.match(text):
            (self._directory / named[1]).write_text(text)
        else:
            exec(compile(text, block.place, "exec"), self._namespace)

    def _command(self, block: Block, command: str, expected: str) -> None:
        if (exported := re.fullmatch(r"export (\w+)=(\S+)", command)) is not None:
            self._environment[exported[1]] = self._given(exported[2])
            return
        before, interrupts, after = expected.partition("^C\n")
        output = self._run(command, before if interrupts else None)
        self._compare(f"{block.place}: $ {command}", before + after, output)

    def _run(self, command: str, until: str | None) -> str:
        """Run a command to its end, or until it has printed something and was interrupted."""
        log = self._directory / "output.txt"
        with log.open("w") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self._given(command)}"],
                cwd=self._directory, env=self._environment, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                deadline = time.monotonic() + _WITHIN
                while until is not None and not _matches(until, self._shown(log)):
                    assert process.poll() is None, f"{command} ended:\n{self._shown(log)}"
                    assert time.monotonic() < deadline, f"{command}:\n{self._shown(log)}"
                    time.sleep(0.1)
                if until is not None:
                    process.send_signal(signal.SIGINT)
                process.wait(_WITHIN)
            finally:
                process.kill()
                process.wait()
        return self._shown(log)

    def _compare(self, where: str, expected: str, output: str) -> None:
        assert _matches(expected, output), f"{where}\nexpected:\n{expected}\ngot:\n{output}"

    def _given(self, text: str) -> str:
        for name, other in self._renamed.items():
            text = text.replace(name, other)
        return text

    def _shown(self, log: Path) -> str:
        text = log.read_text()
        for name, other in self._renamed.items():
            text = text.replace(other, name)
        return text


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output it is said to print."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


def _matches(expected: str, output: str) -> bool:
    """Whether the output is as expected; a line `...` is any lines or none, `...` in a line any text."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"\n"
        for line in _lines(expected)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(output))) is not None


def _lines(text: str) -> list[str]:
    for pattern, word in _CHANGING:
        text = pattern.sub(word, text)
    return [" ".join(line.split()) for line in text.splitlines()]
