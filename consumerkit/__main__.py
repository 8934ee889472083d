"""`python -m consumerkit` is the `consumerkit` command."""

from consumerkit.cli.main import run

if __name__ == "__main__":
    run()
