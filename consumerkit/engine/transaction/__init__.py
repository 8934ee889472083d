"""One transaction: claim, handle, write, COMMIT, and the receipt of its durable results."""
