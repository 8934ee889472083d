"""Keeps other libraries' DEBUG lines out of logs, since they show passwords and payloads."""

from __future__ import annotations

import logging


def silence_debugging(*loggers: str) -> None:
    """Drop the DEBUG lines of these loggers, whatever their level is.

    Call it whenever a client connects: a program that configures its logging again loses filters. A
    second call adds nothing.

    Example:
        >>> silence_debugging("aiosqlite")
        >>> logging.getLogger("aiosqlite").filter(logging.makeLogRecord({"levelno": logging.DEBUG}))
        False
    """
    for name in loggers:
        logging.getLogger(name).addFilter(_no_debugging)


def _no_debugging(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG
