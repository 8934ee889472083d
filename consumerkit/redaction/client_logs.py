"""What other libraries' debugging would show of passwords and payloads is kept out of logs."""

from __future__ import annotations

import logging


def silence_debugging(*loggers: str) -> None:
    """Keep DEBUG lines of these loggers out, whatever their level is set to.

    Called whenever a client connects: a program that sets up its logging again loses filters. A second call adds
    nothing.

    Example:
        >>> silence_debugging("aiosqlite")
        >>> logging.getLogger("aiosqlite").filter(logging.makeLogRecord({"levelno": logging.DEBUG}))
        False
    """
    for name in loggers:
        logging.getLogger(name).addFilter(_no_debugging)


def _no_debugging(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG
