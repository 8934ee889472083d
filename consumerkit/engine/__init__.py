"""The engine: from fetched messages to finished ones, one engine for each handler."""
