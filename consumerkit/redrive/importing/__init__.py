"""From the records of a dead-letter topic to rows of the table: read, routed, and inserted."""
