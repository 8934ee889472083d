"""Brings dead letters back through the handler, or closes them by a person's decision.

    from consumerkit.redrive import Selection, redrive

    report = await redrive("postgresql+psycopg://...", Selection(handler="credit-account", reason="exhausted"))
    print(report.redriven, report.counts)

A redriven letter is parked, in one transaction with the ledger. The worker that owns its partition runs it like every
parked message. Nothing here needs a worker or a broker; `consumerkit dead-letters` calls the same functions.
"""

from consumerkit.dead_letters.formats import Convention
from consumerkit.redrive.api import discard, export, redrive, resolve
from consumerkit.redrive.decision import MAX_REDRIVES, RedriveResult
from consumerkit.redrive.importing.api import ImportReport, import_letters
from consumerkit.redrive.report import Letter, Progress, Report
from consumerkit.storage.dead_letters.letters import State
from consumerkit.storage.dead_letters.selection import Selection

__all__ = [  # noqa: RUF022 - in the order of a contents page
    "redrive",
    "resolve",
    "discard",
    "export",
    "import_letters",
    # Which letters
    "Selection",
    "State",
    "Convention",
    # What became of them
    "Report",
    "ImportReport",
    "Letter",
    "RedriveResult",
    "Progress",
    "MAX_REDRIVES",
]
