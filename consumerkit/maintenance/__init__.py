"""Work of the worker's timer besides messages: it prunes, expires and warns."""
