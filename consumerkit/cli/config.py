"""`consumerkit config`: shows which settings are in force, and where each was set."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from consumerkit.cli import target as targets
from consumerkit.cli.examples import examples
from consumerkit.cli.output import print_json, print_table
from consumerkit.errors import ConfigurationError

if TYPE_CHECKING:
    from consumerkit.settings.shown import Shown

app = typer.Typer(no_args_is_help=True, help="Show which settings are in force.")


@app.callback()
def config() -> None:
    """Show which settings are in force."""


@app.command(
    epilog=examples(
        "config show",
        "config show shop.worker:worker --json",
    )
)
def show(
    target: targets.TargetArgument = None,
    all_: Annotated[bool, typer.Option("--all", help="Show unset settings, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each setting.")] = False,
) -> None:
    """Show each setting in force, and its source.

    Without a target: the settings of the environment and the file. With a target: the settings of its worker and of
    each of its handlers. Secrets are not shown.
    """
    rows = asyncio.run(_of_target(target)) if target else _of_surroundings()
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    found = [row for row in rows if all_ or row.value]
    if not found:
        typer.echo("no setting is set: the values in the code apply")
        return
    print_table(("setting", "value", "from"), found)


def _of_surroundings() -> list[Shown]:
    from consumerkit.settings import Settings
    from consumerkit.settings.shown import shown

    return shown(Settings())


async def _of_target(target: str) -> list[Shown]:
    from consumerkit.settings.shown import shown

    async with targets.opened(target) as worker:
        if worker.settings is None:
            raise ConfigurationError(
                "the worker of this target reads no settings, because its code gives both database and kafka; "
                "Worker(settings=Settings(), ...) reads them"
            )
        return shown(worker.settings, worker.declarations, worker.given)
