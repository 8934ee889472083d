"""Imports a dead-letter topic: reads its records, routes them and inserts rows into the table."""
