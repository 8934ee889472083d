"""The `consumerkit` command."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import traceback
from typing import Annotated

import typer

from consumerkit.cli.examples import examples
from consumerkit.cli.lazy import Room, lazy_group
from consumerkit.cli.typed import take_traceback, want_traceback, without_typed
from consumerkit.errors import ConsumerkitError
from consumerkit.redaction.text import redact
from consumerkit.redaction.variables import without_variables

ROOMS = {
    "run": Room(
        "consumerkit.cli.run:run",
        "Run the worker until SIGTERM or Ctrl-C.",
        examples(
            "run shop.worker:worker --workers 4",
            "run shop.worker:worker --only credit-account --log-format json",
        ),
    ),
    "rewind": Room(
        "consumerkit.cli.positions:rewind",
        "Move a handler back, so that it reads messages again.",
        examples(
            "rewind credit-account --topic payments --to start --dry-run",
            "rewind credit-account --topic payments --partition 3 --to 118",
        ),
    ),
    "skip": Room(
        "consumerkit.cli.positions:skip",
        "Move a handler past messages, or start it on a recreated topic.",
        examples("skip credit-account --topic payments --partition 3 --to end"),
    ),
    "demo": Room(
        "consumerkit.demo.command:demo", "Handle thousands of payments, kill workers, and check every balance."
    ),
    "db": Room("consumerkit.cli.db:app", "Create, check, count and prune consumerkit's tables."),
    "grants": Room(
        "consumerkit.cli.grants:grants",
        "Print the rights that worker, reader and migrator need.",
        examples(
            "grants shop.worker:worker --worker shop --reader support",
            "grants shop.worker:worker --kafka User:shop --writes receipts",
        ),
    ),
    "data": Room("consumerkit.cli.data:app", "Erase the stored payloads of one record key."),
    "dead-letters": Room(
        "consumerkit.cli.dead_letters.commands:app", "List, redrive, resolve, discard, export and import dead letters."
    ),
    "parked": Room("consumerkit.cli.parked:app", "List parked messages, and retry them now."),
    "undos": Room("consumerkit.cli.undos:app", "List the steps that wait to be undone, and give them up."),
    "message": Room("consumerkit.cli.message:app", "Show what happened to a message."),
    "outbox": Room("consumerkit.cli.outbox:app", "List the messages that wait to be sent, and discard one."),
    "publish": Room(
        "consumerkit.cli.publish:publish",
        "Send a message to a topic by hand.",
        examples(
            """publish payments '{"amount": 5}' --key alice --id pay-1""",
            "publish payments --file payments.jsonl --lines --json",
        ),
    ),
    "topics": Room("consumerkit.cli.topics:app", "Check and create the topics that the handlers need."),
    "config": Room("consumerkit.cli.config:app", "Show which settings are in force."),
    "retry": Room("consumerkit.cli.retry:app", "Show when a retry policy tries again."),
}
"""The commands, in the order of the list."""

app = typer.Typer(
    name="consumerkit",
    cls=lazy_group(ROOMS),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _want_traceback(wanted: bool) -> None:
    if wanted:
        want_traceback()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"consumerkit {importlib.metadata.version('consumerkit')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            callback=_want_traceback,
            help="Print the traceback when the target's own code fails; may stand anywhere in the line.",
        ),
    ] = False,
) -> None:
    """Idempotent message consumers for Kafka.

    TARGET is module:attribute: a Worker, a callable that returns one, or an async context manager that yields one. If
    it is not given, commands read the variable CONSUMERKIT_APP.
    """


def run() -> None:
    """Run the command line; an error of consumerkit becomes one line on standard error and an exit status."""
    try:
        app(take_traceback(sys.argv[1:]))
    except ConsumerkitError as error:
        from consumerkit.cli.output import complain, exit_code

        complain(error)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # The interpreter must not flush into the broken pipe at its end; 141 is what other tools
        # return.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:  # noqa: BLE001 - printed in full, as Python would, but without possible secrets
        print(
            without_typed(redact(without_variables("".join(traceback.format_exception(error))))),
            file=sys.stderr,
            end="",
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
