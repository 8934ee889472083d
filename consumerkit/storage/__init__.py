"""What consumerkit keeps in the user's database: synchronous functions that take a session and never commit it."""
