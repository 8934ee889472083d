"""The command line: `consumerkit`."""
