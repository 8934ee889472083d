"""Redrives imported letters, in any number and in the order of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from consumerkit.redrive.api import redrive
from consumerkit.redrive.importing.report import ImportReport
from consumerkit.redrive.report import Letter, Report
from consumerkit.storage.database import Database
from consumerkit.storage.dead_letters.selection import Selection

AT_ONCE: Final = 1_000


async def redrive_imported(database: Database, imported: ImportReport, **options: Any) -> Report:
    """Redrive the letters of an imported topic, including those of an earlier import.

    Args:
        database: The letters' database.
        imported: The import's report.
        options: The options of `redrive`.

    Example:
        >>> async def take_over(worker: Worker) -> None:
        ...     imported = await import_letters(worker, "credit-account", "payments-dlt")
        ...     report = await redrive_imported(worker.database, imported, rate=50)
    """
    numbers = [letter.id for letter in sorted(imported.letters)]
    letters: list[Letter] = []
    busy: list[Any] = []
    for at in range(0, len(numbers), AT_ONCE):
        report = await redrive(database, Selection(ids=_chosen(numbers, at)), **options)
        letters += report.letters
        busy += report.busy
    return Report(letters=tuple(letters), busy=tuple(dict.fromkeys(busy)))


def _chosen(numbers: Sequence[int], at: int) -> frozenset[int]:
    return frozenset(numbers[at : at + AT_ONCE])
