"""Decides where to read a partition: at the mark, even if Kafka's offset differs; explains the difference."""

from __future__ import annotations

from typing import NamedTuple

from consumerkit.engine.partitions.commit_origin import CommitNote, CommitOrigin
from consumerkit.errors import PartitionUnusable
from consumerkit.message import TopicPartition
from consumerkit.storage.first_runs import FirstStart, Source
from consumerkit.storage.progress import Standing
from consumerkit.transports.base import PartitionInfo


class StartPosition(NamedTuple):
    """Where an owner begins.

    Attributes:
        offset: The first message to read: the mark.
        start: Where the consumer's first run began.
        remark: A note for people, or None.
        alarming: Whether the remark is about a loss.
        intact: Whether this worker may go on with its messages in hand: no other worker has owned the partition
            since, and the database has all that it had acknowledged.
    """

    offset: int
    start: int
    remark: str | None = None
    alarming: bool = False
    intact: bool = False


def noted_start(handler: str, text: str) -> int | None:
    """Return where this handler's first run began, by a committed offset's text; None if another wrote it.

    Example:
        >>> noted_start("credit-account", "consumerkit credit-account start=17"), noted_start("other", "")
        (17, None)
    """
    found = CommitNote.read(text)
    return found.start if found is not None and found.handler == handler else None


def beginning(
    origin: CommitOrigin, partition: TopicPartition, standing: Standing, info: PartitionInfo, first: FirstStart | None
) -> StartPosition:
    """Return where to begin with a partition.

    Args:
        origin: The handler, with the identity that distinguishes its commits from another database's.
        partition: The partition.
        standing: The database's knowledge of it.
        info: The broker's answer about it.
        first: The decision about its first run; None if it was added later.

    Raises:
        PartitionUnusable: The log is not the one of the mark, the messages in between were deleted unread, or another
            database's handler uses the group.
    """
    if (refusal := origin.refusal(info.note)) is not None:
        raise PartitionUnusable(f"{partition}: {refusal}")
    handler = origin.handler
    ours = noted_start(handler, info.note)
    if standing.mark is None:
        if ours is None:
            return _first_run(handler, partition, info, first)
        _check(handler, partition, ours, info, "where its first run began, since its mark is lost")
        lost = (
            f"the database has lost the mark of {partition}, and Kafka has offset {info.committed}; the worker "
            f"begins again at {ours}, where this handler's first run began"
        )
        return StartPosition(ours, ours, lost, alarming=True)
    if standing.topic_id is not None and standing.topic_id != info.topic_id:
        raise PartitionUnusable(
            f"topic {partition.topic!r} was recreated after {partition} had been handled up to offset "
            f"{standing.mark} (its ID was {standing.topic_id} and is {info.topic_id}); to begin with the new topic, "
            "run: "
            f"{_skip(handler, partition)} start"
        )
    _check(handler, partition, standing.mark, info, "its mark")
    start = standing.mark if standing.start is None else standing.start
    remark, alarming = _difference(standing.mark, info, ours=ours is not None)
    return StartPosition(standing.mark, start, remark and f"{partition}: {remark}", alarming)


def _first_run(handler: str, partition: TopicPartition, info: PartitionInfo, first: FirstStart | None) -> StartPosition:
    if first is None:
        # The messages below a committed offset have been handled.
        offset = info.start if info.committed is None else info.committed
    elif first.offset is None or first.source is Source.START:
        # Messages that retention removes before a handler begins to read are older than its first run.
        offset = max(info.start, first.offset or 0)
    else:
        offset = first.offset
    if offset < info.start:
        _check(handler, partition, offset, info, "where its first run begins")
    return StartPosition(offset, offset)


def _skip(handler: str, partition: TopicPartition) -> str:
    return f"consumerkit skip {handler} --topic {partition.topic} --partition {partition.partition} --to"


def _check(handler: str, partition: TopicPartition, offset: int, info: PartitionInfo, what: str) -> None:
    if offset > info.end:
        raise PartitionUnusable(
            f"{partition} cannot be read from offset {offset} ({what}): the log ends at {info.end}, so it was "
            f"truncated; to go on at its end, run: {_skip(handler, partition)} end"
        )
    if offset < info.start:
        raise PartitionUnusable(
            f"{partition} cannot be read from offset {offset} ({what}): the log begins at {info.start}, so the "
            f"messages between were deleted unread; to go on without them, run: {_skip(handler, partition)} start"
        )


def _difference(mark: int, info: PartitionInfo, *, ours: bool) -> tuple[str | None, bool]:
    committed = info.committed
    if committed is None or committed == mark:
        return None, False
    if not ours:
        moved = (
            f"somebody moved Kafka's committed offset to {committed}; that changes nothing: the database's mark, "
            f"{mark}, decides; to move it, use consumerkit rewind or skip"
        )
        return moved, False
    if committed < mark:
        return None, False  # a death between the mark and the commit
    lost = (
        f"the database has lost commits: Kafka has offset {committed}, the database's mark is {mark}; the worker "
        "goes back to the mark and runs the lost messages again (consumerkit rewind looks the same)"
    )
    return lost, True
