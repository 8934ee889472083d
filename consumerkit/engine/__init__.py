"""The engine turns fetched messages into finished ones; each handler has its own."""
