"""The log of librdkafka's own lines, without the repetitions of an outage."""

from __future__ import annotations

import logging
from typing import Final

from consumerkit.observability.repetitions import Repetitions

log: Final = logging.getLogger(__name__)
log.addFilter(Repetitions())
