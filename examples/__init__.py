"""One idea each: `python -m examples.01_credit_account`. Without any server, or on yours; see `stage.py`."""
