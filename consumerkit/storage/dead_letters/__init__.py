"""Messages that were given up: their rows, their history, and how a decision on them is written down."""
