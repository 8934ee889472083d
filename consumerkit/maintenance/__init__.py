"""What the worker's timer does beside messages: it prunes, expires and warns."""
