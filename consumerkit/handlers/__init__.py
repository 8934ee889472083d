"""How a handler is declared: its class, its message ID, what the value becomes, and the checks of all of it."""
