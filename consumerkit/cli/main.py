"""The `consumerkit` command."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Annotated

import typer

from consumerkit.cli import data, db, dead_letters, message, outbox, positions, retry, topics
from consumerkit.cli.examples import examples
from consumerkit.cli.output import complain, exit_code
from consumerkit.cli.run import run as run_command
from consumerkit.demo.command import demo
from consumerkit.errors import ConsumerkitError

app = typer.Typer(
    name="consumerkit",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(
    "run",
    epilog=examples(
        "run shop.worker:worker --workers 4",
        "run shop.worker:worker --only credit-account --log-format json",
    ),
)(run_command)
app.add_typer(db.app, name="db")
app.add_typer(data.app, name="data")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(message.app, name="message")
app.command(
    "rewind",
    epilog=examples(
        "rewind credit-account --topic payments --to start --dry-run",
        "rewind credit-account --topic payments --partition 3 --to 118",
    ),
)(positions.rewind)
app.command(
    "skip",
    epilog=examples(
        "skip credit-account --topic payments --partition 3 --to end",
    ),
)(positions.skip)
app.add_typer(outbox.app, name="outbox")
app.add_typer(topics.app, name="topics")
app.add_typer(retry.app, name="retry")
app.command("demo")(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"consumerkit {importlib.metadata.version('consumerkit')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Idempotent message consumers for Kafka.

    TARGET is module:attribute: a Worker, a callable that returns one, or an async context manager that yields one. The
    variable CONSUMERKIT_APP stands in where it is not given.
    """


def run() -> None:
    """Run the command line: an error of consumerkit is one line on standard error and an exit status, no traceback."""
    try:
        app()
    except ConsumerkitError as error:
        complain(error)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # As other tools do; and nothing is to be flushed into the broken pipe when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
