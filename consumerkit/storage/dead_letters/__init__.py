"""Dead letters: their rows, their history, and how a decision on them is stored."""
