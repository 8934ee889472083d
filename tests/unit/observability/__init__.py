"""Units of `consumerkit.observability`."""
