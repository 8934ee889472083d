"""A person's operations on a handler: move its position, erase the stored data of a key."""
