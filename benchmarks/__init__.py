"""The same handler in another framework, by hand and in consumerkit, side by side: `python -m benchmarks`."""
