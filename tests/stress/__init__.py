"""A seeded stress of the product: two workers, faults of every kind, and an oracle that knows the right result."""
