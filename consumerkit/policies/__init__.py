"""Values that a handler declares: how often it is tried, how long it waits, and where its messages end."""
