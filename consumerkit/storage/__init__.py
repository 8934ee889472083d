"""What consumerkit keeps in the user's database: synchronous functions over a session that never commit."""
