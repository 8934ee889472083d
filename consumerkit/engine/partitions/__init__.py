"""An engine's partitions: their owners, their positions and their committed offsets."""
