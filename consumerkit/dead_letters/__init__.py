"""What a dead letter tells: the error in words, and the record's format in a dead-letter topic."""
