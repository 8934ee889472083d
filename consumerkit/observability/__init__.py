"""What is seen from outside: events told as log lines."""
