"""Processes killed at every boundary."""
