"""Gauges of a handler's partitions, and of what holds the handler up, kept by events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from consumerkit import events
from consumerkit.events import Event
from consumerkit.monitoring.instruments import Among, Shows

MakeGauge = Callable[[str, str, Among], Shows]


class HandlerGauges:
    """Shows which partitions this process owns, which of them are stopped, and whether the brake is on.

    Args:
        gauge: Makes a gauge with the label `handler`.
    """

    def __init__(self, gauge: MakeGauge) -> None:
        self.partitions = gauge("partitions", "Partitions that this worker owns.", "livesum")
        self.stopped = gauge("partitions_stopped", "Partitions that wait for a person.", "livesum")
        self.brake = gauge("brake_on", "1 while the brake is on.", "livemax")
        self._owned: dict[str, set[object]] = {}
        self._unreadable: dict[str, set[object]] = {}
        self._braked: set[str] = set()
        self.takes: Mapping[type[Event], Callable[[Any], None]] = {
            events.PartitionTaken: self._taken,
            events.PartitionStopped: self._partition_stopped,
            events.PartitionsAssigned: self._assigned,
            events.PartitionsRevoked: self._revoked,
            events.BrakeOn: self._brake_on,
            events.BrakeOff: self._brake_off,
        }

    def _assigned(self, event: events.PartitionsAssigned) -> None:
        self._forget_stopped(event.handler, event.partitions)

    def _taken(self, event: events.PartitionTaken) -> None:
        owned = self._owned.setdefault(event.handler, set())
        owned.add(event.partition)
        self._show(event.handler)
        self._forget_stopped(event.handler, (event.partition,))

    def _revoked(self, event: events.PartitionsRevoked) -> None:
        owned = self._owned.setdefault(event.handler, set())
        owned.difference_update(event.partitions)
        self._show(event.handler)
        self._forget_stopped(event.handler, event.partitions)

    def _show(self, handler: str) -> None:
        self.partitions.set(len(self._owned[handler]), handler)
        if handler in self._braked:
            # Only a message can release the brake. Without a partition there is none: the new owners decide.
            self.brake.set(1 if self._owned[handler] else 0, handler)

    def _partition_stopped(self, event: events.PartitionStopped) -> None:
        stopped = self._unreadable.setdefault(event.handler, set())
        stopped.add(event.partition)
        self.stopped.set(len(stopped), event.handler)

    def _forget_stopped(self, handler: str, partitions: tuple[object, ...]) -> None:
        stopped = self._unreadable.setdefault(handler, set())
        stopped.difference_update(partitions)
        self.stopped.set(len(stopped), handler)

    def _brake_on(self, event: events.BrakeOn) -> None:
        # A partition that is slowed down does not count as the handler's brake.
        if event.partition is None:
            self._braked.add(event.handler)
            self.brake.set(1, event.handler)

    def _brake_off(self, event: events.BrakeOff) -> None:
        if event.partition is None:
            self._braked.discard(event.handler)
            self.brake.set(0, event.handler)
