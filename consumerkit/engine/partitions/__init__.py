"""What an engine knows of its partitions: who owns them, where they stand, and what is committed."""
