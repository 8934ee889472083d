"""Units of `consumerkit.cli`."""
