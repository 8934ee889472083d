"""The tests; `tests.services` starts the real servers they run on."""
