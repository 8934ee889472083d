"""Runs messages one after another: batches, attempts, waits and the brake."""
