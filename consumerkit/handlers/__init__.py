"""Declares handlers: the classes, the message ID, the decoding of values, and the checks of each declaration."""
