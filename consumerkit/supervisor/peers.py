"""Lets a worker process leave consumer groups for other processes of its supervisor that have died."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Final

from consumerkit.errors import Unavailable
from consumerkit.supervisor.lifeline import GroupMember, Lifeline
from consumerkit.worker import Worker

_TELL_EVERY: Final = 0.1
_TRY_FOR: Final = 60.0
_PAUSE: Final = 1.0
_log = logging.getLogger(__name__)


class Peers:
    """Reports this process's group members to the supervisor, and leaves groups for members of dead processes.

    Both run in threads, which a handler that blocks the event loop does not stop.

    Args:
        lifeline: The connection to the supervisor.
        worker: The worker of this process.
    """

    def __init__(self, lifeline: Lifeline, worker: Worker) -> None:
        self._lifeline = lifeline
        self._worker = worker

    def start(self) -> None:
        """Begin, where there is a supervisor; both threads end with the process."""
        if self._lifeline.is_held:
            self._lifeline.hear_of_the_dead(self._leave)
            threading.Thread(target=self._tell, daemon=True, name="supervisor-members").start()

    def _tell(self) -> None:
        told: frozenset[GroupMember] = frozenset()
        while True:
            now = frozenset(GroupMember(*one) for one in self._worker.members())
            if now != told:
                self._lifeline.tell_members(now)
                told = now
            time.sleep(_TELL_EVERY)

    def _leave(self, members: frozenset[GroupMember]) -> None:
        for group in sorted({member.group for member in members}):
            asyncio.run(self._leave_one(group, [member.id for member in members if member.group == group]))

    async def _leave_one(self, group: str, ids: list[str]) -> None:
        end = time.monotonic() + _TRY_FOR
        while True:
            try:
                await self._worker.transport.leave(group, ids)
            except Unavailable as error:
                why = str(error)
            else:
                _log.info("left group %s for a dead worker process: its partitions go to other members now", group)
                return
            if time.monotonic() > end:
                _log.warning(
                    "cannot leave group %s for a dead worker process: its partitions stand still until its session "
                    "times out: %s",
                    group,
                    why,
                )
                return
            await asyncio.sleep(_PAUSE)
