"""`consumerkit publish`: sends messages to a topic by hand, to try things out."""

from __future__ import annotations

import asyncio
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import uuid4

import typer

from consumerkit.cli import target as targets
from consumerkit.cli.json_options import JsonLinesOption
from consumerkit.cli.numbers import partition_number
from consumerkit.cli.output import complain, print_json, say
from consumerkit.errors import ConfigurationError, StartError
from consumerkit.message import TOPIC_RULE, Headers, is_topic_name
from consumerkit.storage.outbox import MESSAGE_ID_HEADER
from consumerkit.transports.base import PlacingProducer, Record, SendFailure
from consumerkit.worker import Worker

_AT_A_TIME: Final = 500


def publish(
    topic: Annotated[
        str, typer.Argument(metavar="TOPIC", help="The topic's name, as the broker knows it.", show_default=False)
    ],
    value: Annotated[
        str | None,
        typer.Argument(
            metavar="VALUE", help="The value to send; without it, --file or standard input.", show_default=False
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            envvar=targets.VARIABLE,
            help="The worker, as module:attribute. The message goes to its Kafka.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Send the content of this file.", show_default=False)
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Send each line as a message; skip empty lines.")] = False,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="The record key, as text.", show_default=False)] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header; can be repeated.", show_default=False)
    ] = None,
    id: Annotated[
        str | None,
        typer.Option(metavar="ID", help=f"The header {MESSAGE_ID_HEADER}.", show_default="a random one for each"),
    ] = None,
    partition: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", callback=partition_number, help="Where to.", show_default="by the key"),
    ] = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Send a message to a topic by hand.

    The value is sent as it is, except a line break at the end of standard input. It goes straight to the broker, not
    through the outbox. The command prints each message's partition, offset and message ID. Exit status 1 if one was not
    acknowledged; the broker may have it nevertheless.
    """
    spec = targets.given(target)
    if not is_topic_name(topic):
        raise ConfigurationError(f"TOPIC: the value is not the name of a topic; {TOPIC_RULE}")
    if id == "" or (id is not None and lines):
        why = "each line needs an ID of its own" if lines else "it is empty"
        raise ConfigurationError(f"--id: {why}; leave it out to get a random one")
    named = _headers(header or ())
    records = []
    for each in _values(value, file, lines=lines):
        name = os.fsencode(id or uuid4().hex)
        headers = (*named, (MESSAGE_ID_HEADER, name))
        records.append(Record(topic, None if key is None else os.fsencode(key), each, headers, partition))
    if not asyncio.run(_published(spec, records, as_json=as_json)):
        raise typer.Exit(1)


def _headers(given: Sequence[str]) -> Headers:
    found = []
    for number, one in enumerate(given, 1):
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"--header: number {number} is not NAME=VALUE, such as type=payment")
        if name == MESSAGE_ID_HEADER:
            raise ConfigurationError(f"--header: {name} is what --id sets; write --id VALUE")
        found.append((name, os.fsencode(value)))
    return tuple(found)


def _values(value: str | None, file: Path | None, *, lines: bool) -> list[bytes]:
    """Return the values to send, from the argument, the file or standard input."""
    if value is not None and file is not None:
        raise ConfigurationError("VALUE and --file are both given; leave one out")
    if value is not None:
        found = os.fsencode(value)
    elif file is not None:
        try:
            found = file.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"--file: {error.strerror}; give a file that can be read") from None
    else:
        found = _standard_input(lines=lines)
    if not lines:
        return [found]
    values = [line for each in found.split(b"\n") if (line := each.removesuffix(b"\r"))]
    if not values:
        raise ConfigurationError("--lines: there is no line to send, only empty ones or none")
    return values


def _standard_input(*, lines: bool) -> bytes:
    stdin: Any = sys.stdin  # None where it is closed
    if stdin is None or stdin.isatty():
        raise ConfigurationError("nothing to send; give VALUE, --file PATH, or standard input, as in `echo 1 | ...`")
    try:
        found: bytes = stdin.buffer.read()
    except OSError as error:
        raise ConfigurationError("standard input cannot be read; give VALUE or --file PATH") from error
    if not found and not lines:
        raise ConfigurationError("standard input is empty; give VALUE or --file PATH, and '' for an empty value")
    return found if lines else found.removesuffix(b"\n").removesuffix(b"\r")


async def _published(target: str, records: Sequence[Record], *, as_json: bool) -> bool:
    """Send the records and print each result; return whether all were acknowledged."""
    async with targets.opened(target) as worker:
        try:
            await _check_place(worker, records[0])
            producer = worker.transport.producer()
            await producer.start()
            try:
                return await _sent(producer, records, as_json=as_json)
            finally:
                await producer.stop()
        finally:
            await worker.database.dispose()


async def _check_place(worker: Worker, record: Record) -> None:
    found = (await worker.transport.topics([record.topic])).get(record.topic)
    if found is None:
        known = {topic for declared in worker.declarations for topic in declared.topics}
        near = difflib.get_close_matches(record.topic, sorted(known - {record.topic}), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        way_out = "correct its name, or create it, as `consumerkit topics create --partitions N` does for handlers"
        raise StartError(f"topic {record.topic!r} does not exist: {way_out}{hint}")
    if record.partition is not None and record.partition >= found.partitions:
        highest = found.partitions - 1
        raise StartError(f"topic {record.topic!r} has no partition {record.partition}; give one from 0 to {highest}")


async def _sent(producer: PlacingProducer, records: Sequence[Record], *, as_json: bool) -> bool:
    """Send the records in portions; stop after a portion with a failure."""
    for start in range(0, len(records), _AT_A_TIME):
        portion = records[start : start + _AT_A_TIME]
        answers = await producer.place(portion)
        for number, (record, answer) in enumerate(zip(portion, answers, strict=True), start + 1):
            _tell(record, number, answer, as_json=as_json)
        if any(isinstance(answer, SendFailure) for answer in answers):
            if (left := len(records) - start - len(portion)) > 0:
                complain(f"message {start + len(portion) + 1} and all after it, {left} in all, were not sent")
            return False
    return True


def _tell(record: Record, number: int, answer: Any, *, as_json: bool) -> None:
    name = (record.headers[-1][1] or b"").decode("utf-8", "backslashreplace")
    if isinstance(answer, SendFailure):
        complain(f"message {number}, ID {name!r}: not acknowledged: {answer.code}: {answer.message}")
        return
    offset = None if answer.offset < 0 else answer.offset
    if as_json:
        print_json({"topic": record.topic, "partition": answer.partition, "offset": offset, "message_id": name})
    else:
        shown = "?" if offset is None else offset
        say(f"{record.topic}[{answer.partition}]@{shown}  {MESSAGE_ID_HEADER} {name}")
