"""Measures by handler how many messages of the topics are not processed yet, in the partitions of all owners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from consumerkit.message import TopicPartition
from consumerkit.transports.base import Survey, Surveyed

Marks = Mapping[TopicPartition, int]
_MOST_SAMPLES: Final = 256


class Lag(NamedTuple):
    """The messages in the logs that are not processed.

    Attributes:
        messages: Offsets between the marks and the ends of the logs.
        oldest_seconds: How long the first of them has been there, as far as this process has seen.
    """

    messages: int = 0
    oldest_seconds: float = 0.0


class Ends:
    """Remembers the ends of logs with their times, to tell how long a message has waited behind a mark."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, TopicPartition], list[tuple[float, int]]] = {}

    def lag(self, handler: str, marks: Marks, surveys: Mapping[str, Survey], *, from_start: bool, now: float) -> Lag:
        """Compare a handler's marks with the broker's answers about its topics.

        Args:
            handler: Its name.
            marks: The handler's positions. A partition without a mark begins at its group's
                committed offset, at its start, or at its end.
            surveys: The broker's answers, by topic.
            from_start: Whether a first run begins at the start.
            now: The time now, by the monotonic clock.
        """
        messages, oldest = 0, 0.0
        for topic, survey in surveys.items():
            for number, told in survey.partitions.items():
                if told.span is None:
                    continue
                name = TopicPartition(topic, number)
                mark = marks.get(name, _beginning(told, from_start=from_start))
                behind = max(0, told.span.end - max(mark, told.span.start))
                messages += behind
                since = self._since((handler, name), mark, told.span.end, now)
                if behind:
                    oldest = max(oldest, now - since)
        return Lag(messages, oldest)

    def _since(self, at: tuple[str, TopicPartition], mark: int, end: int, now: float) -> float:
        """Return the time since which the log is known to end behind a mark."""
        kept = [one for one in self._seen.get(at, ()) if one[1] > mark]
        if end > mark and (not kept or kept[-1][1] != end):
            kept.append((now, end))
        self._seen[at] = kept = _thinned(kept)
        return kept[0][0] if kept else now


def _beginning(told: Surveyed, *, from_start: bool) -> int:
    assert told.span is not None
    if told.committed is not None:
        return told.committed
    return told.span.start if from_start else told.span.end


def _thinned(samples: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Drop every second sample where there are too many; the first and the last stay."""
    if len(samples) <= _MOST_SAMPLES:
        return samples
    return [*samples[:-1:2], samples[-1]]


def surveyed(topics: Sequence[str], surveys: Mapping[str, Survey]) -> dict[str, Survey]:
    """Return the answers about these topics."""
    return {topic: surveys[topic] for topic in topics if topic in surveys}
