"""Python's cyclic garbage collector, in a process that lives for consuming.

A batch makes thousands of objects that live until its commit and then go by their reference counts, without a cycle.
With Python's defaults each batch sets the collector off a dozen times, and every now and then it walks through all
that was ever imported: up to a fifth of the time that a message takes, measured.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# About what one batch makes.
_NEW_OBJECTS: Final = 10_000


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Look for cyclic garbage about once a batch, and only in what was made since; afterwards as before.

    A threshold that is higher already, or a collector that is off, is left as it is.
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
