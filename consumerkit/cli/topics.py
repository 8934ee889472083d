"""`consumerkit topics`: checks the handlers' topics, and creates those that are missing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from consumerkit.cli import target as targets
from consumerkit.cli.examples import examples
from consumerkit.cli.numbers import partition_number
from consumerkit.cli.output import complain, print_table, say
from consumerkit.handlers.declaration import Declaration
from consumerkit.transports.base import Transport

app = typer.Typer(no_args_is_help=True, help="Check and create the topics that the handlers need.")


@dataclass(frozen=True)
class Need:
    """A topic that must exist.

    Attributes:
        topic: The topic's name.
        use: "read by ...", "published to by ..." or "dead letters of ...".
        sources: For a dead-letter topic, the topics whose partitions it must match; else empty.
        partitions: Its number of partitions; None where it does not exist.
        wanted: The least number of partitions that it needs; None where a source does not exist
            either.
    """

    topic: str
    use: str
    sources: tuple[str, ...]
    partitions: int | None
    wanted: int | None

    @property
    def state(self) -> str:
        """Return "ok", or what is wrong."""
        if self.partitions is None:
            return "missing"
        if self.wanted is not None and self.partitions < self.wanted:
            return f"too few partitions: its source has {self.wanted}"
        return "ok"


@app.command(
    epilog=examples(
        "topics check shop.worker:worker",
    )
)
def check(target: targets.TargetArgument = None) -> None:
    """Check the topics that the handlers read and write.

    It checks source topics, dead-letter topics and the topics in publishes = ("...",).

    Exit status 1 if one is missing or too small. A dead-letter topic needs at least as many partitions as its largest
    source.
    """
    needs = asyncio.run(_looked_up(targets.given(target)))
    print_table(
        ("topic", "partitions", "use", "state"), [(need.topic, need.partitions, need.use, need.state) for need in needs]
    )
    if any(need.state != "ok" for need in needs):
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "topics create shop.worker:worker --partitions 12",
    )
)
def create(
    target: targets.TargetArgument = None,
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            callback=partition_number,
            help="Also create missing topics that handlers read or publish to, with this many partitions.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Create the dead-letter topics that are missing.

    With --partitions, it also creates the topics that handlers read or publish to. Dead-letter topics get as many
    partitions as their source. Existing topics are left as they are; new ones get the broker's defaults. Exit status 1
    if a topic is still missing or too small.
    """
    made, left = asyncio.run(_create(targets.given(target), partitions))
    for topic, count in made.items():
        say(f"created {topic} with {count} partition{'s' if count > 1 else ''}")
    for need in left:
        way_out = "" if need.partitions is not None else "; --partitions N creates it"
        complain(f"topic {need.topic!r} ({need.use}): {need.state}{way_out}")
    if left:
        raise typer.Exit(1)
    if not made:
        say("all topics are there")


async def _looked_up(target: str) -> list[Need]:
    async with targets.opened(target) as worker:
        return await _needs(worker.declarations, worker.transport)


async def _create(target: str, partitions: int | None) -> tuple[dict[str, int], list[Need]]:
    """Create sources first, since a dead-letter topic gets as many partitions as its source."""
    async with targets.opened(target) as worker:
        transport = worker.transport
        needs = await _needs(worker.declarations, transport)
        made: dict[str, int] = {}
        if partitions is not None:
            made = {need.topic: partitions for need in needs if not need.sources and need.partitions is None}
            await _make(transport, made)
            needs = await _needs(worker.declarations, transport)
        missing = {
            need.topic: need.wanted
            for need in needs
            if need.sources and need.partitions is None and need.wanted is not None
        }
        await _make(transport, missing)
        created = {**made, **missing}
        return created, [need for need in needs if need.state != "ok" and need.topic not in created]


async def _make(transport: Transport, partitions: Mapping[str, int]) -> None:
    if partitions:
        await transport.create_topics(partitions)


async def _needs(declarations: Sequence[Declaration], transport: Transport) -> list[Need]:
    readers: dict[str, list[str]] = {}
    publishers: dict[str, list[str]] = {}
    senders: dict[str, list[Declaration]] = {}
    for declaration in declarations:
        for topic in declaration.publishes or ():
            publishers.setdefault(topic, []).append(declaration.name)
        for topic in declaration.topics:
            readers.setdefault(topic, []).append(declaration.name)
        if declaration.dead_letter is not None:
            senders.setdefault(declaration.dead_letter.topic, []).append(declaration)
    known = await transport.topics(list({**readers, **publishers, **senders}))
    has = {name: info.partitions for name, info in known.items()}
    needs = [
        Need(topic, _use(readers.get(topic), publishers.get(topic)), (), has.get(topic), 1)
        for topic in {**readers, **publishers}
        if topic not in senders
    ]
    for topic, theirs in senders.items():
        sources = tuple(sorted({source for declaration in theirs for source in declaration.topics}))
        wanted = max(has[source] for source in sources) if all(source in has for source in sources) else None
        use = f"dead letters of {', '.join(declaration.name for declaration in theirs)}"
        needs.append(Need(topic, use, sources, has.get(topic), wanted))
    return needs


def _use(readers: Sequence[str] | None, publishers: Sequence[str] | None) -> str:
    uses = (("read by", readers), ("published to by", publishers))
    return "; ".join(f"{use} {', '.join(names)}" for use, names in uses if names)
