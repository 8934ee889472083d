"""The content of a dead letter: the error in words, and the record's format in a dead-letter topic."""
