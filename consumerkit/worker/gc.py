"""Tunes Python's cyclic garbage collector for a process that only consumes.

A batch makes thousands of objects without cycles, which live until its commit and are then freed by
their reference counts. With Python's defaults each batch starts the collector a dozen times, and
now and then it traverses everything ever imported. Measured, this takes up to a fifth of a
message's time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# About as many objects as one batch makes.
_NEW_OBJECTS: Final = 10_000


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Collect cyclic garbage about once a batch, only among newer objects; restore the settings at the end.

    A threshold that is already higher stays, and so does a collector that is off.
    """
    new_objects, *older = before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    if 0 < new_objects < _NEW_OBJECTS:
        gc.set_threshold(_NEW_OBJECTS, *older)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
