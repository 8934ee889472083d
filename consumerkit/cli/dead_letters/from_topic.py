"""`consumerkit dead-letters redrive --from-topic`: imports and redrives in one command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated, Any

import typer

from consumerkit.cli import target as targets
from consumerkit.cli.dead_letters.importing import imported, print_report
from consumerkit.cli.output import say
from consumerkit.errors import ConfigurationError
from consumerkit.redaction.plain_words import shown_word
from consumerkit.redrive import Convention, ImportReport, Report, import_letters
from consumerkit.redrive.imported import redrive_imported
from consumerkit.worker import Worker

FromTopicOption = Annotated[
    str | None,
    typer.Option(
        metavar="TOPIC",
        help="Import this dead-letter topic first, as import does, then redrive its letters. Needs --handler.",
        show_default=False,
    ),
]


def redrive_topic(
    target: str | None,
    handler: str | None,
    topic: str,
    options: Mapping[str, Any],
    *,
    convention: Convention,
    as_topic: str | None,
    dry_run: bool,
    as_json: bool,
) -> Report | None:
    """Import a topic, print the result, and redrive its letters; return None after a dry run.

    Raises:
        ConfigurationError: No handler or no target is named.
    """
    if handler is None:
        raise ConfigurationError(
            f"--from-topic {shown_word(topic)}: no handler is named; name the one whose dead letters they are with "
            f"--handler"
        )
    call: Callable[..., Awaitable[ImportReport]] = partial(
        import_letters,
        handler=handler,
        topic=topic,
        convention=convention,
        as_topic=as_topic,
        by=options["by"],
        note=options["note"],
        dry_run=dry_run,
    )

    async def act(worker: Worker, **more: Any) -> tuple[ImportReport, Report | None]:
        found = await call(worker, **more)
        return found, None if dry_run else await redrive_imported(worker.database, found, **options)

    found, report = asyncio.run(imported(targets.given(target), topic, (), act, quiet=as_json))
    if report is None or not as_json:
        print_report(found, topic, as_json=as_json)
    if report is None and not as_json:
        say("the imported letters would then be redriven")
    if report is None and found.wants_a_look:
        raise typer.Exit(1)
    return report
