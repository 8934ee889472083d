"""One transaction: claim, handle, write, COMMIT, and the receipt of what that made durable."""
