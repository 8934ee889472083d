"""Keeps secrets out of texts that are kept or printed."""
