"""`import consumerkit` and the command line's help import only what they use."""

import subprocess
import sys

import pytest

import consumerkit
from consumerkit.cli.main import ROOMS

HEAVY = (
    "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite", "opentelemetry",
    "alembic", "aiokafka", "confluent_kafka", "mako", "rich", "starlette", "fastapi", "consumerkit.engine",
    "consumerkit.relay", "pydantic", "pydantic_core",
)  # fmt: skip


def _imported(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sys.modules, sep=chr(10), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


HELP = """
sys.argv[1:] = ['--help']
from consumerkit.cli.main import run
try:
    run()
except SystemExit:
    pass
"""


@pytest.mark.parametrize("statement", ["import consumerkit", HELP], ids=["package", "help"])
def test_what_is_heavy_is_imported_when_it_is_used(statement: str) -> None:
    imported = _imported(statement)
    assert "sqlalchemy.ext.asyncio" in imported  # so that the list is not empty for another reason
    # Typer itself may bring rich.
    allowed = {"rich"} if "cli" in statement else set()
    assert imported & set(HEAVY) <= allowed


def test_the_worker_is_there_for_whoever_asks() -> None:
    assert "Worker" in dir(consumerkit)
    assert consumerkit.Worker.__name__ == "Worker"
    with pytest.raises(AttributeError, match="no attribute 'Wroker'"):
        consumerkit.Wroker  # noqa: B018


@pytest.mark.parametrize("name", ROOMS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    command = ROOMS[name].load(name)
    assert command.name == name
    assert command.get_short_help_str(200) == ROOMS[name].help
